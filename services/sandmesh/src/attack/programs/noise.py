# 24: output without end. $ATTACK_WAY says which.
way = os.environ["ATTACK_WAY"]
piece = b"x" * 65536
if way == "endless output":
    while True:
        os.write(1, piece)
if way == "endless errors":
    while True:
        os.write(2, piece)
if way == "both, line by line":
    while True:
        os.write(1, b"line\n" * 800)
        os.write(2, b"\n" * 4000)
if way == "one line of a gigabyte":
    for _ in range((1 << 30) >> 16):
        os.write(1, piece)
if way == "byte by byte":
    while True:
        os.write(1, b"x")
if way == "the result without end":
    while True:
        os.write(3, piece)
if way == "zeros and escapes":
    for _ in range(400):
        os.write(1, b"\0\x1b[2J\xff\xfe\r" * 10000)
