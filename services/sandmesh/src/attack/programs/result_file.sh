# 1, 5: the file that a result is read from, turned into something else. $ATTACK_WAY says what.
f=$RESULT_FILE
case $ATTACK_WAY in
  link) ln -sf "$CANARY/secret" "$f" ;;
  "link to environ") ln -sf /proc/1/environ "$f" ;;
  "link to zeros") ln -sf /dev/zero "$f" ;;
  "link to passwd") ln -sf /etc/passwd "$f" ;;
  fifo) rm -f "$f"; mkfifo "$f" ;;
  socket) rm -f "$f"; python3 -c 'import os, socket; socket.socket(socket.AF_UNIX).bind(os.environ["RESULT_FILE"])' ;;
  directory) rm -f "$f"; mkdir "$f" ;;
  "parent is a link") d=${f%/*}; mv "$d" "$d.old"; ln -s "$CANARY" "$d"; ;;
  huge) truncate -s 40M "$f" ;;
  sparse) truncate -s 20M "$f"; printf '"end"' >>"$f" ;;
  swapped) (while :; do ln -sf "$CANARY/secret" "$f"; rm -f "$f"; printf 1 >"$f"; done) >/dev/null 2>&1 & sleep 0.3 ;;
esac
echo done
