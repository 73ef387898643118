//! A small assembler for filters of system calls: a binary tree over the calls' numbers.
//!
//! The kernel runs a filter on every call, and runs it once for every number that there is when it is
//! installed, which for a part of it happens in each execution. A list of comparisons makes that most of a
//! millisecond; a tree of the ranges that are treated alike makes it a few hundred steps.

/// What to do with a call: a value that a filter returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer(u32);

impl Answer {
    pub(super) const ALLOW: Self = Self(libc::SECCOMP_RET_ALLOW);
    pub(super) const KILL: Self = Self(libc::SECCOMP_RET_KILL_PROCESS);

    /// The call fails with this error.
    pub(super) const fn errno(errno: i32) -> Self {
        Self(libc::SECCOMP_RET_ERRNO | errno.unsigned_abs())
    }

    /// The value that the filter returns.
    #[cfg(test)]
    pub(super) const fn value(self) -> u32 {
        self.0
    }
}

/// A condition on the low 32 bits of an argument, which is all that the kernel looks at in those used
/// here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Is(u32, u32),
    IsNot(u32, u32),
    /// None of these bits is set.
    HasNone(u32, u32),
}

/// What decides about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    Always(Answer),
    /// Allowed if all conditions of one of these hold, and otherwise answered so.
    AllowIf(Vec<Vec<Condition>>, Answer),
}

/// One instruction: what to do, where to go on if so and if not, and a number.
type Instruction = (u16, u8, u8, u32);

const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_IF_SET: u16 = 0x45;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A filter as the kernel takes it. Calls of another architecture kill. `rules` are by number, in
/// order, each for the numbers from its own up to the next; the first is for 0.
pub(super) fn assemble(architecture: u32, rules: &[(u32, Rule)]) -> Vec<u8> {
    let mut program = vec![
        (LOAD_WORD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, Answer::KILL.0),
        (LOAD_WORD, 0, 0, NUMBER),
    ];
    program.extend(tree(rules));
    program.into_iter().flat_map(encode).collect()
}

/// Halves the rules until one is left.
fn tree(rules: &[(u32, Rule)]) -> Vec<Instruction> {
    let (below, above) = rules.split_at(rules.len() / 2);
    match (below, above) {
        (_, []) => vec![(RETURN, 0, 0, Answer::KILL.0)],
        ([], [(_, rule), ..]) => leaf(rule),
        (_, [(first, _), ..]) => {
            let (low, high) = (tree(below), tree(above));
            let mut program = match u8::try_from(low.len()) {
                Ok(distance) => vec![(JUMP_GREATER_OR_EQUAL, distance, 0, *first)],
                // Too far for a conditional jump.
                Err(_) => vec![
                    (JUMP_GREATER_OR_EQUAL, 0, 1, *first),
                    (JUMP, 0, 0, u32::try_from(low.len()).unwrap_or(u32::MAX)),
                ],
            };
            program.extend(low.into_iter().chain(high));
            program
        }
    }
}

fn leaf(rule: &Rule) -> Vec<Instruction> {
    match rule {
        Rule::Always(answer) => vec![(RETURN, 0, 0, answer.0)],
        Rule::AllowIf(alternatives, otherwise) => {
            let mut program: Vec<_> =
                alternatives.iter().flat_map(|conditions| alternative(conditions)).collect();
            program.push((RETURN, 0, 0, otherwise.0));
            program
        }
    }
}

/// Allows if all conditions hold; goes on behind itself if one does not.
fn alternative(conditions: &[Condition]) -> Vec<Instruction> {
    let mut program = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        let (Condition::Is(argument, _) | Condition::IsNot(argument, _) | Condition::HasNone(argument, _)) =
            condition;
        // Two instructions for each condition that is left, and the return.
        let out = u8::try_from((conditions.len() - index - 1) * 2 + 1).unwrap_or(u8::MAX);
        program.push((LOAD_WORD, 0, 0, ARGUMENTS + argument * 8 + low_word()));
        program.push(match condition {
            Condition::Is(_, value) => (JUMP_EQUAL, 0, out, *value),
            Condition::IsNot(_, value) => (JUMP_EQUAL, out, 0, *value),
            Condition::HasNone(_, bits) => (JUMP_IF_SET, out, 0, *bits),
        });
    }
    program.push((RETURN, 0, 0, Answer::ALLOW.0));
    program
}

/// Where the low half of an argument is.
const fn low_word() -> u32 {
    if cfg!(target_endian = "little") { 0 } else { 4 }
}

fn encode((code, yes, no, number): Instruction) -> [u8; 8] {
    let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), number.to_ne_bytes());
    [a, b, yes, no, c, d, e, f]
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a filter as the kernel does; gives its answer and the steps it took.
    pub(crate) fn run(program: &[u8], architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let mut data = [number.to_ne_bytes(), architecture.to_ne_bytes(), [0; 4], [0; 4]].concat();
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let (mut at, mut loaded) = (0, 0_u32);
        for steps in 1..=4096 {
            let op = &program[at * 8..at * 8 + 8];
            let code = u16::from_ne_bytes([op[0], op[1]]);
            let (yes, no) = (usize::from(op[2]), usize::from(op[3]));
            let number = u32::from_ne_bytes(op[4..8].try_into().unwrap());
            let offset = number as usize;
            at += 1 + match code {
                LOAD_WORD => {
                    loaded = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
                    0
                }
                JUMP => offset,
                JUMP_EQUAL => {
                    if loaded == number {
                        yes
                    } else {
                        no
                    }
                }
                JUMP_IF_SET => {
                    if loaded & number != 0 {
                        yes
                    } else {
                        no
                    }
                }
                JUMP_GREATER_OR_EQUAL => {
                    if loaded >= number {
                        yes
                    } else {
                        no
                    }
                }
                RETURN => return (number, steps),
                _ => panic!("{code:#x}"),
            };
        }
        panic!("it does not end");
    }

    proptest! {
        #[test]
        fn tree_answers_like_the_list_of_its_rules(
            starts in prop::collection::btree_set(1_u32..2000, 0..600),
            asked in prop::collection::vec(0_u32..2100, 50),
        ) {
            let answer = |number: u32| Answer::errno(i32::try_from(number).unwrap());
            let mut rules = vec![(0, Rule::Always(answer(0)))];
            rules.extend(starts.iter().map(|start| (*start, Rule::Always(answer(*start)))));
            let program = assemble(7, &rules);
            for number in asked {
                let expected = rules.iter().rev().find(|(start, _)| *start <= number).unwrap().0;
                let (got, steps) = run(&program, 7, number, [0; 6]);
                prop_assert_eq!(got, answer(expected).0);
                prop_assert!(steps < 40, "{} steps", steps);
            }
            prop_assert_eq!(run(&program, 8, 0, [0; 6]).0, Answer::KILL.0);
        }

        #[test]
        fn conditions_are_a_choice_of_conjunctions(a in 0_u64..4, b in 0_u64..4) {
            let rule = Rule::AllowIf(
                vec![vec![Condition::Is(0, 1), Condition::IsNot(1, 2)], vec![Condition::HasNone(0, 1), Condition::Is(1, 3)]],
                Answer::errno(1),
            );
            let allowed = (a == 1 && b != 2) || (a & 1 == 0 && b == 3);
            let program = assemble(7, &[(0, rule)]);
            // The high half is not looked at.
            let arguments = [a | 1 << 40, b | 1 << 63, 0, 0, 0, 0];
            let expected = if allowed { Answer::ALLOW } else { Answer::errno(1) };
            prop_assert_eq!(run(&program, 7, 0, arguments).0, expected.0);
        }
    }
}
