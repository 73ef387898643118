// 34: the same in JavaScript.
const crypto = require("crypto");
const tell = (what, got) => console.log(JSON.stringify({ try: what, got: String(got) }));
tell("Math.random", [Math.random(), Math.random()]);
tell("randomUUID", crypto.randomUUID());
tell("randomBytes", crypto.randomBytes(16).toString("hex"));
tell("webcrypto", crypto.webcrypto.getRandomValues(new Uint32Array(4)));
console.log(JSON.stringify({ done: 4 }));
