# 34: the same in shell.
printf '{"try": "shell urandom", "got": "%s"}\n' "$(od -An -N16 -tx8 /dev/urandom | tr -d ' \n')"
printf '{"try": "shell RANDOM", "got": "%s"}\n' "$RANDOM $RANDOM $RANDOM $RANDOM"
printf '{"try": "shell SRANDOM", "got": "%s"}\n' "${SRANDOM:-0} $(cat /proc/sys/kernel/random/uuid)"
printf '{"done": 3}\n'
