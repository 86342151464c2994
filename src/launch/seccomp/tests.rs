//! Profiles are compiled, and the program is run by a small interpreter with the kernel's rules.

use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;

const HERE: SeccompContext = SeccompContext { capabilities: 0, architecture: Architecture::X86_64, kernel: (6, 1) };

/// A system call as a filter sees it: architecture, number, arguments.
type Call = (u32, u32, [u64; 6]);

/// Runs the program as the kernel does, with its checks: every load inside of the 64 bytes, every jump forward and
/// inside of the program.
fn run(program: &[u8], (architecture, number, arguments): Call) -> u32 {
    let mut data = Vec::from(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend([0; 8]);
    for argument in arguments {
        data.extend((argument as u32).to_ne_bytes());
        data.extend(((argument >> 32) as u32).to_ne_bytes());
    }
    assert!(program.len().is_multiple_of(8) && program.len() / 8 <= MAX_INSTRUCTIONS);
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let bytes = &program[8 * at..8 * at + 8];
        let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let number = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let holds = match code {
            bpf::LOAD => {
                let offset = number as usize;
                assert!(offset.is_multiple_of(4));
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().expect("four bytes"));
                None
            }
            bpf::AND => {
                accumulator &= number;
                None
            }
            bpf::JA => {
                at += number as usize;
                None
            }
            bpf::JEQ => Some(accumulator == number),
            bpf::JGT => Some(accumulator > number),
            bpf::JGE => Some(accumulator >= number),
            bpf::RET => return number,
            _ => panic!("instruction {at} has the code {code:#x}"),
        };
        at += 1 + match holds {
            Some(true) => usize::from(bytes[2]),
            Some(false) => usize::from(bytes[3]),
            None => 0,
        };
    }
}

#[track_caller]
fn compiled(profile: &str, context: &SeccompContext) -> Vec<u8> {
    compile(profile.as_bytes(), context).expect("a profile that compiles")
}

/// Checks what a profile answers to calls.
#[track_caller]
fn check(profile: &str, context: &SeccompContext, expected: &[(Call, u32)]) {
    let program = compiled(profile, context);
    for (call, answer) in expected {
        assert_eq!(run(&program, *call), *answer, "{call:x?}");
    }
}

fn x86_64(name: &str, arguments: &[u64]) -> Call {
    let (native, ..) = Architecture::X86_64.interfaces();
    call(native, name, arguments)
}

fn x86(name: &str, arguments: &[u64]) -> Call {
    let (.., sibling) = Architecture::X86_64.interfaces();
    call(sibling, name, arguments)
}

fn call(interface: Interface, name: &str, arguments: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    (interface.audit, (interface.number)(name).expect("a known call"), all)
}

#[track_caller]
fn check_refused(profile: &str, expected: &str) {
    let error = compile(profile.as_bytes(), &HERE).expect_err("a profile that is refused");
    assert_eq!(error.to_string(), expected);
}

#[test]
fn named_calls_fail_and_the_others_go_on() {
    check(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#,
        &HERE,
        &[
            (x86_64("mkdir", &[]), ERRNO | EPERM),
            (x86_64("mkdirat", &[]), ERRNO | EPERM),
            (x86_64("rmdir", &[]), ALLOW),
            (x86_64("read", &[]), ALLOW),
            ((X86_64, 5000, [0; 6]), ALLOW),
        ],
    );
}

#[test]
fn a_list_of_allowed_calls_refuses_the_rest_with_the_default_number() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
        "syscalls":[{"names":["read","write","exit_group"],"action":"SCMP_ACT_ALLOW"}]}"#;
    let program = compiled(profile, &HERE);
    for number in 0..600 {
        let allowed = [0, 1, 231].contains(&number);
        let expected = if allowed { ALLOW } else { ERRNO | 38 };
        assert_eq!(run(&program, (X86_64, number, [0; 6])), expected, "{number}");
    }
}

#[test]
fn every_action_has_its_answer() {
    for (action, answer) in [
        ("SCMP_ACT_ALLOW", ALLOW),
        ("SCMP_ACT_ERRNO", ERRNO | 7),
        ("SCMP_ACT_KILL", KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", KILL_THREAD),
        ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS),
        ("SCMP_ACT_TRAP", TRAP),
        ("SCMP_ACT_LOG", LOG),
        ("SCMP_ACT_TRACE", TRACE | 7),
    ] {
        let profile = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"name":"open","action":"{action}","errnoRet":7}}]}}"#
        );
        check(&profile, &HERE, &[(x86_64("open", &[]), answer), (x86_64("close", &[]), ERRNO | EPERM)]);
    }
}

#[test]
fn comparisons_have_all_64_bits() {
    const EDGES: [u64; 9] = [0, 1, 6, 7, 8, 1 << 32, (7 << 32) | 7, (8 << 32) | 6, u64::MAX];
    type Relation = fn(u64, u64) -> bool;
    let operators: [(&str, Relation); 6] = [
        ("EQ", |a, b| a == b),
        ("NE", |a, b| a != b),
        ("LT", |a, b| a < b),
        ("LE", |a, b| a <= b),
        ("GT", |a, b| a > b),
        ("GE", |a, b| a >= b),
    ];
    for (operator, relation) in operators {
        for value in EDGES {
            let profile = format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["ioctl"],"action":"SCMP_ACT_ALLOW",
                    "args":[{{"index":1,"value":{value},"op":"SCMP_CMP_{operator}"}}]}}]}}"#
            );
            let program = compiled(&profile, &HERE);
            for argument in EDGES {
                let expected = if relation(argument, value) { ALLOW } else { ERRNO | EPERM };
                let answer = run(&program, x86_64("ioctl", &[9, argument]));
                assert_eq!(answer, expected, "{argument:#x} {operator} {value:#x}");
            }
        }
    }
}

#[test]
fn a_masked_comparison_looks_at_the_masked_bits_alone() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":4295032832,"valueTwo":65536,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
    assert_eq!(4_295_032_832u64, 0x1_0001_0000);
    check(
        profile,
        &HERE,
        &[
            (x86_64("clone", &[0x1_0000]), ALLOW),
            (x86_64("clone", &[0x1_0011]), ALLOW),
            (x86_64("clone", &[0]), ERRNO | EPERM),
            (x86_64("clone", &[0x1_0001_0000]), ERRNO | EPERM),
        ],
    );
}

#[test]
fn several_arguments_must_all_hold_and_several_entries_need_one() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[
            {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_LE"}]},
        {"names":["socket"],"action":"SCMP_ACT_LOG","args":[{"index":2,"value":9,"op":"SCMP_CMP_EQ"}]}]}"#;
    check(
        profile,
        &HERE,
        &[
            (x86_64("socket", &[1, 2]), ALLOW),
            (x86_64("socket", &[1, 3]), ERRNO | EPERM),
            (x86_64("socket", &[2, 2]), ERRNO | EPERM),
            (x86_64("socket", &[2, 2, 9]), LOG),
            (x86_64("socket", &[1, 2, 9]), ALLOW),
        ],
    );
}

#[test]
fn comparisons_of_the_same_argument_are_a_choice() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#;
    check(
        profile,
        &HERE,
        &[
            (x86_64("personality", &[0]), ALLOW),
            (x86_64("personality", &[8]), ALLOW),
            (x86_64("personality", &[4]), ERRNO | EPERM),
        ],
    );
}

#[test]
fn an_entry_without_arguments_is_stronger_than_those_with_and_the_first_of_two_counts() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["open"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
        {"names":["open"],"action":"SCMP_ACT_ALLOW"},
        {"names":["open"],"action":"SCMP_ACT_ERRNO","errnoRet":2},
        {"names":["open"],"action":"SCMP_ACT_TRAP"}]}"#;
    check(profile, &HERE, &[(x86_64("open", &[0]), ERRNO | 2), (x86_64("open", &[1]), ERRNO | 2)]);
}

#[test]
fn a_profile_older_than_clone3_lets_threads_start_in_the_old_way() {
    let old = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW"}]}"#;
    check(old, &HERE, &[(x86_64("clone", &[]), ALLOW), (x86_64("clone3", &[]), ERRNO | ENOSYS)]);
    for (action, answer) in [("SCMP_ACT_ERRNO", ERRNO | EPERM), ("SCMP_ACT_ALLOW", ALLOW)] {
        let new =
            format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["clone3"],"action":"{action}"}}]}}"#);
        check(&new, &HERE, &[(x86_64("clone3", &[]), answer)]);
    }
    let killing = r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS"}"#;
    check(killing, &HERE, &[(x86_64("clone3", &[]), KILL_PROCESS)]);
}

#[test]
fn unknown_names_are_skipped() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["no_such_call","s390_pci_mmio_read","mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#;
    check(profile, &HERE, &[(x86_64("mkdir", &[]), ERRNO | EPERM), (x86_64("read", &[]), ALLOW)]);
}

#[test]
fn conditions_are_held_against_the_container() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
        {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"],"arches":["s390x"]}},
        {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
        {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.2"}},
        {"names":["kcmp"],"action":"SCMP_ACT_ALLOW","excludes":{"minKernel":"6.2"}},
        {"names":["arch_prctl"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","x32"]}},
        {"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["arm64"]}}]}"#;
    let refused = ERRNO | EPERM;
    check(
        profile,
        &HERE,
        &[
            (x86_64("mount", &[]), refused),
            (x86_64("clone", &[]), ALLOW),
            (x86_64("ptrace", &[]), ALLOW),
            (x86_64("bpf", &[]), refused),
            (x86_64("kcmp", &[]), ALLOW),
            (x86_64("arch_prctl", &[]), ALLOW),
            (x86_64("read", &[]), refused),
        ],
    );
    let able = SeccompContext { capabilities: 1 << 21, kernel: (6, 2), ..HERE };
    check(
        profile,
        &able,
        &[
            (x86_64("mount", &[]), ALLOW),
            (x86_64("clone", &[]), refused),
            (x86_64("bpf", &[]), ALLOW),
            (x86_64("kcmp", &[]), refused),
        ],
    );
}

#[test]
fn calls_of_x32_and_of_other_architectures_never_pass() {
    check(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64",
            "subArchitectures":["SCMP_ARCH_X32"]}]}"#,
        &HERE,
        &[
            ((X86_64, X32_BIT, [0; 6]), ERRNO | ENOSYS),
            ((X86_64, X32_BIT | 512, [0; 6]), ERRNO | ENOSYS),
            ((X86_64, u32::MAX, [0; 6]), ERRNO | ENOSYS),
            ((X86_64, X32_BIT - 1, [0; 6]), ALLOW),
            (x86("read", &[]), KILL_PROCESS),
            ((AARCH64, 63, [0; 6]), KILL_PROCESS),
        ],
    );
}

#[test]
fn programs_of_32_bits_are_filtered_by_their_own_numbers() {
    for list in [
        r#""archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}]"#,
        r#""architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"]"#,
    ] {
        let profile = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW",{list},"syscalls":[
                {{"names":["mkdir","socket","shmget"],"action":"SCMP_ACT_ERRNO"}},
                {{"names":["ioctl"],"action":"SCMP_ACT_ERRNO",
                  "args":[{{"index":0,"value":18446744073709551615,"op":"SCMP_CMP_EQ"}}]}}]}}"#
        );
        check(
            &profile,
            &HERE,
            &[
                (x86_64("mkdir", &[]), ERRNO | EPERM),
                (x86("mkdir", &[]), ERRNO | EPERM),
                ((X86, 83, [0; 6]), ALLOW),
                (x86("ioctl", &[0xffff_ffff]), ERRNO | EPERM),
                (x86("ioctl", &[1]), ALLOW),
                (x86("socket", &[]), ERRNO | EPERM),
                (x86("socketcall", &[1]), ERRNO | EPERM),
                (x86("socketcall", &[2]), ALLOW),
                (x86("ipc", &[23]), ERRNO | EPERM),
                (x86("ipc", &[24]), ALLOW),
            ],
        );
    }
}

#[test]
fn a_profile_serves_arm_as_well() {
    let context = SeccompContext { architecture: Architecture::Aarch64, ..HERE };
    check(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#,
        &context,
        // Number 83 is mkdir on x86_64, and fdatasync here.
        &[
            ((AARCH64, 34, [0; 6]), ERRNO | EPERM),
            ((AARCH64, 83, [0; 6]), ALLOW),
            ((AARCH64, X32_BIT, [0; 6]), ALLOW),
            ((X86_64, 0, [0; 6]), KILL_PROCESS),
        ],
    );
}

#[test]
fn a_long_list_of_scattered_calls_is_found_by_bisection() {
    // Every second number has an answer of its own, so that no ranges can be joined and jumps get long.
    let names: Vec<&str> = syscalls::x86_64::Sysno::iter().map(|call| call.name()).collect();
    let entries: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(at, name)| format!(r#"{{"names":["{name}"],"action":"SCMP_ACT_ERRNO","errnoRet":{}}}"#, at + 2))
        .collect();
    let profile = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#, entries.join(","));
    let program = compiled(&profile, &HERE);
    assert!(names.len() > 350);
    for (at, name) in names.iter().enumerate() {
        assert_eq!(run(&program, x86_64(name, &[])), ERRNO | (at as u32 + 2), "{name}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    check_refused("{", "line 1, column 1: EOF while parsing an object");
    check_refused("{}", "line 1, column 2: missing field `defaultAction`");
    check_refused(r#"{"defaultAction":"SCMP_ACT_NOTHING"}"#, "`defaultAction`: `SCMP_ACT_NOTHING` is no action");
    let entry = |entry: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_LOG"}},{entry}]}}"#
        )
    };
    for (text, expected) in [
        (r#"{"names":["mkdir"],"action":"DENY"}"#, "`syscalls[1]` (`mkdir`): `DENY` is no action"),
        (r#"{"names":[],"action":"SCMP_ACT_LOG"}"#, "`syscalls[1]`: no system call is named"),
        (
            r#"{"name":"a","names":["b"],"action":"SCMP_ACT_LOG"}"#,
            "`syscalls[1]` (`a`): `name` and `names` exclude each other",
        ),
        (
            r#"{"names":["open"],"action":"SCMP_ACT_LOG","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
            "`syscalls[1]` (`open`): a system call has no argument 6, the last one is 5",
        ),
        (
            r#"{"names":["open"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":0,"op":"=="}]}"#,
            "`syscalls[1]` (`open`): `==` is no comparison",
        ),
        (
            r#"{"names":["open"],"action":"SCMP_ACT_ERRNO","errnoRet":4096}"#,
            "`syscalls[1]` (`open`): the error number 4096 is too large",
        ),
        (
            r#"{"names":["open"],"action":"SCMP_ACT_LOG","includes":{"minKernel":"new"}}"#,
            "`syscalls[1]` (`open`): `minKernel` is `new`, expected a version such as `4.8`",
        ),
    ] {
        check_refused(&entry(text), expected);
    }
}

#[test]
fn what_the_kernel_would_not_take_is_refused() {
    let comparisons = vec![r#"{"index":0,"value":7,"op":"SCMP_CMP_GT"}"#; 1000].join(",");
    let profile = format!(
        r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {{"names":["read","write"],"action":"SCMP_ACT_LOG","args":[{comparisons}]}}]}}"#
    );
    check_refused(&profile, "the filter would have more than the 4096 instructions that the kernel takes");
    let names = vec![r#""read""#; 100_000].join(",");
    let profile =
        format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":[{names}],"action":"SCMP_ACT_LOG"}}]}}"#);
    assert!(compiled(&profile, &HERE).len() / 8 < 16, "a repeated name counts once");
    let long = format!(r#"{{"defaultAction":"{}"}}"#, "A".repeat(MAX_PROFILE_BYTES));
    assert!(matches!(compile(long.as_bytes(), &HERE), Err(SeccompError::TooLarge { .. })));
}
