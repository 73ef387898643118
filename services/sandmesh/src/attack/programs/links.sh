# 1, 2, 5, 6: a workspace full of traps for whoever handles it from outside. $CANARY is a directory of the host.
cd /workspace
ln -s "$CANARY/secret" secret
ln -s "$CANARY" dir
ln -s "$CANARY/inner" .removed-0
ln -s "$CANARY" .removed-1
ln -s / root
ln -s /proc/1/root proc-root
ln -s ../../../../../../../../../etc up
ln -s . loop
ln -s loop2 loop3; ln -s loop3 loop2
mkdir -p a/b/c/d && ln -s "$CANARY" a/b/c/d/dir && ln -s "$CANARY/secret" a/b/secret
# Names that somebody may use for something of its own.
for name in tmp dev proc etc usr .sandmesh spool workspace executor.sock executor.pid sandbox.json house; do ln -s "$CANARY" "$name"; done
mkfifo fifo a/fifo
python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.bind("socket")'
mknod device b 254 0 2>/dev/null || true
mknod zero c 1 5 2>/dev/null || true
mkdir locked && echo x > locked/file && chmod 000 locked
mkdir sticky && chmod 1777 sticky && mkdir sticky/inner && chmod 000 sticky/inner
printf 'x' > "$(printf 'new\nline')"; printf 'x' > ' -rf'; printf 'x' > '*'; printf 'x' > "$(printf '\377\376')"
ln "$CANARY/secret" hard 2>/dev/null || true
ln secret hard-to-link 2>/dev/null || true
chmod 000 a/b
echo planted
