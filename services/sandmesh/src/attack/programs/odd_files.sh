# 5: what an execution leaves that is no file, or no file of its own. $CANARY is a directory of the host.
cd /workspace
printf 'plain\n' > plain
ln plain 'second name'
mkfifo fifo
python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.bind("socket")'
mknod device c 1 5 2>/dev/null || true
ln -s "$CANARY/secret" link
ln -s /proc/self/environ environ
ln -s /workspace/plain own-link
ln -s / root
mkdir directory && ln -s "$CANARY" directory/in
printf x > "$(printf '\377\376')"
echo made
