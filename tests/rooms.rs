//! The map in `docs/ARCHITECTURE.md` against the code: what each room imports and touches, and the rules of the whole
//! that no compiler checks.
//!
//! Sources are read as tokens, so comments and strings don't count; items under `#[cfg(test)]` don't either.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One line of the table: what a room may do and whom it may name.
#[derive(Debug, Default)]
struct Room {
    effects: Vec<String>,
    imports: Vec<String>,
}

type Map = BTreeMap<String, Room>;

/// A path as it stands in the code, with `use` groups spelled out: `std::fs::read`.
type Segments = Vec<String>;

fn parse_map(text: &str) -> Map {
    let table = text.split("```rooms\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a table of rooms");
    let mut map = Map::new();
    for line in table.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (Some(name), Some(effects)) = (words.next(), words.next()) else {
            panic!("a room and its effects: {line}")
        };
        let effects = effects.split(',').filter(|effect| *effect != "none").map(str::to_owned).collect::<Vec<_>>();
        for effect in &effects {
            assert!(["read", "write", "exec", "net"].contains(&effect.as_str()), "an effect: {effect}");
        }
        let imports = words.filter(|word| *word != "-").map(str::to_owned).collect();
        assert!(map.insert(name.to_owned(), Room { effects, imports }).is_none(), "one line for {name}");
    }
    map
}

/// The line that speaks for `module`: its own, or that of the nearest module around it.
fn line_of(map: &Map, module: &[String]) -> Option<String> {
    (1..=module.len()).rev().map(|length| module[..length].join("::")).find(|name| map.contains_key(name))
}

/// Every path in `tokens`. `prefix` is what stands before the braces of a `use` group.
fn paths(tokens: TokenStream, prefix: &[String], found: &mut Vec<Segments>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let colons = |at: usize| {
        matches!(tokens.get(at), Some(TokenTree::Punct(first)) if first.as_char() == ':')
            && matches!(tokens.get(at + 1), Some(TokenTree::Punct(second)) if second.as_char() == ':')
    };
    let mut at = 0;
    while at < tokens.len() {
        if let Some(after) = skip_test_item(&tokens, at) {
            at = after;
            continue;
        }
        match &tokens[at] {
            TokenTree::Group(group) => paths(group.stream(), &[], found),
            // `use a as b`: the new name is nobody's path.
            TokenTree::Ident(word) if word == "as" && !prefix.is_empty() => at += 1,
            TokenTree::Ident(word) => {
                let mut path = prefix.to_vec();
                if word != "self" || prefix.is_empty() {
                    path.push(word.to_string());
                }
                let mut group = None;
                while colons(at + 1) {
                    match tokens.get(at + 3) {
                        Some(TokenTree::Ident(next)) => path.push(next.to_string()),
                        Some(TokenTree::Group(braces)) if braces.delimiter() == Delimiter::Brace => {
                            group = Some(braces.stream());
                        }
                        _ => break,
                    }
                    at += 3;
                }
                match group {
                    Some(stream) => paths(stream, &path, found),
                    None if path.len() > 1 => found.push(path),
                    None => {}
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// The index after an item that only tests compile, if one begins at `at` with its attribute.
fn skip_test_item(tokens: &[TokenTree], at: usize) -> Option<usize> {
    let TokenTree::Punct(hash) = tokens.get(at)? else { return None };
    let TokenTree::Group(attribute) = tokens.get(at + 1)? else { return None };
    let text = attribute.stream().to_string().replace(' ', "");
    if hash.as_char() != '#' || !(text.starts_with("cfg(test") || text.starts_with("cfg(all(test")) {
        return None;
    }
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    };
    let length = tokens[at + 2..].iter().position(ends)?;
    Some(at + 2 + length + 1)
}

/// A source file: where it is, which module it is, and what it says.
struct Source {
    path: PathBuf,
    module: Segments,
    text: String,
}

impl Source {
    fn tokens(&self) -> TokenStream {
        self.text.parse().unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    fn paths(&self) -> Vec<Segments> {
        let mut found = Vec::new();
        paths(self.tokens(), &[], &mut found);
        found
    }
}

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether the sources can be read here. The copies that other users run are alone.
fn no_sources() -> bool {
    crate::need::lacks(&[crate::need::SOURCES])
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The files below `directory` of the checkout, but for those that only tests compile (`tests.rs`).
fn sources(directory: &str) -> Vec<Source> {
    let top = checkout().join(directory);
    let mut files = Vec::new();
    rust_files(&top, &mut files);
    files.sort();
    let without_tests = files.into_iter().filter(|path| path.file_name().is_some_and(|name| name != "tests.rs"));
    without_tests
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a source can be read");
            let inside = path.strip_prefix(&top).expect("below its directory").with_extension("");
            let mut module: Segments = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| last == "mod") {
                module.pop();
            }
            Source { path, module, text }
        })
        .collect()
}

/// The path seen from the root of the crate, if it names something of the crate.
fn inside_crate(source: &Source, path: &Segments) -> Option<Segments> {
    match path.first().map(String::as_str)? {
        "crate" => Some(path[1..].to_vec()),
        "super" => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            let around = &source.module[..source.module.len().checked_sub(ups)?];
            Some(around.iter().chain(&path[ups..]).cloned().collect())
        }
        _ => None,
    }
}

/// Says what is wrong with one path in a room, if something is.
fn judge_import(map: &Map, own: &str, source: &Source, path: &Segments) -> Option<String> {
    let room = &map[own];
    if room.imports.iter().any(|word| word == "*") {
        return None;
    }
    let target = match inside_crate(source, path) {
        // Items of the crate's root are not rooms.
        Some(inside) => line_of(map, &inside)?,
        None if path[0] == "starter" => path[..2].join("::"),
        None => return None,
    };
    let effects = |name: &str| map.get(name).map_or(&[][..], |room| &room.effects[..]);
    // A line covers the modules inside it that have a line of their own, as long as those can do no more than it can.
    let covers = |name: &str| {
        target == name
            || (target.starts_with(&format!("{name}::"))
                && effects(&target).iter().all(|effect| effects(name).contains(effect)))
    };
    if covers(own) || room.imports.iter().any(|name| covers(name)) {
        return None;
    }
    Some(format!("`{own}` may not import `{target}`"))
}

/// The functions of `std::fs` that change something.
const FS_WRITES: &[&str] = &[
    "write",
    "create_dir",
    "create_dir_all",
    "remove_file",
    "remove_dir",
    "remove_dir_all",
    "rename",
    "copy",
    "hard_link",
    "set_permissions",
];

/// Says which effect a path needs: one of those named, any one being enough.
fn effect_of(path: &Segments) -> Option<&'static [&'static str]> {
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["std", "fs", function, ..] | ["fs", function] if FS_WRITES.contains(function) => Some(&["write"]),
        ["File", "create" | "create_new" | "create_buffered"] | [.., "fs", "File", "create" | "create_new"] => {
            Some(&["write"])
        }
        ["std", "fs", ..] => Some(&["read", "write"]),
        ["std", "env", ..] => Some(&["read"]),
        ["std", "net", ..] => Some(&["net"]),
        ["std", "process", "ExitCode" | "Termination", ..] => None,
        ["std", "process", "id"] => Some(&["read", "exec"]),
        ["std", "process", ..] => Some(&["exec"]),
        ["nix", ..] => Some(&["read", "write", "exec", "net"]),
        _ => None,
    }
}

/// Everything in `sources` that the map does not allow, one line each.
fn violations(map: &Map, sources: &[Source]) -> String {
    let mut wrong = String::new();
    for source in sources {
        let place = source.path.strip_prefix(checkout()).unwrap_or(&source.path).display().to_string();
        if ["lib", "main"].contains(&source.module.join("::").as_str()) {
            continue;
        }
        let Some(own) = line_of(map, &source.module) else {
            let _ = writeln!(wrong, "{place}: no line of the map speaks for it");
            continue;
        };
        for path in source.paths() {
            let spelled = path.join("::");
            if let Some(why) = judge_import(map, &own, source, &path) {
                let _ = writeln!(wrong, "{place}: {why} ({spelled})");
            }
            if let Some(needed) = effect_of(&path)
                && !needed.iter().any(|effect| map[&own].effects.iter().any(|has| has == effect))
            {
                let _ = writeln!(
                    wrong,
                    "{place}: `{own}` uses `{spelled}`, which needs the effect {}",
                    needed.join(" or ")
                );
            }
        }
    }
    wrong
}

#[test]
fn every_room_keeps_to_its_line_of_the_map() {
    if no_sources() {
        return;
    }
    let map = parse_map(&std::fs::read_to_string(checkout().join("docs/ARCHITECTURE.md")).expect("the map"));
    let wrong = violations(&map, &sources("src"));
    assert!(wrong.is_empty(), "the map and the code differ:\n{wrong}");
}

#[test]
fn every_line_of_the_map_speaks_for_a_file() {
    if no_sources() {
        return;
    }
    let map = parse_map(&std::fs::read_to_string(checkout().join("docs/ARCHITECTURE.md")).expect("the map"));
    let sources = sources("src");
    for name in map.keys() {
        let there = sources.iter().any(|source| source.module.join("::").starts_with(name.as_str()));
        assert!(there, "no file for the line `{name}`");
    }
}

/// Judges one made-up file by a made-up map.
#[track_caller]
fn check(module: &str, code: &str, expected: &str) {
    let map = parse_map(
        "```rooms\nreport write -\nfacts none -\nhost read report\nhost::facts none -\nplan none host::facts starter::plan\n\
         plan::start exec plan\ncli read,write,exec *\n```",
    );
    let module: Segments = module.split("::").map(str::to_owned).collect();
    let source = Source { path: PathBuf::from("a.rs"), module, text: code.to_owned() };
    let wrong = violations(&map, &[source]);
    assert!(if expected.is_empty() { wrong.is_empty() } else { wrong.contains(expected) }, "{code}: {wrong:?}");
}

#[test]
fn an_import_that_the_line_does_not_name_is_found() {
    check("plan", "use crate::report::info;", "may not import `report`");
    check("plan", "fn f() { crate::report::info(1) }", "may not import `report`");
    check("plan", "use {crate::host::{facts::Facts, observe}};", "may not import `host`");
    check("plan::deep", "use super::super::report;", "may not import `report`");
    check("plan", "use starter::sys::open;", "may not import `starter::sys`");
    check("plan", "use super::plan::start::go;", "may not import `plan::start`");
}

#[test]
fn an_import_that_the_line_names_is_allowed() {
    check("plan", "use crate::host::facts::Facts; use starter::plan::{Step, LaunchPlan};", "");
    check("plan::start", "use super::Plan; use crate::plan::Other;", "");
    check("host", "use crate::{report::{self, info}, host::facts::Facts as F};", "");
    check("cli", "use crate::plan::start::go; fn f() { std::fs::write(a, b) }", "");
}

#[test]
fn an_effect_that_the_line_does_not_name_is_found() {
    check("plan", "use std::fs;", "needs the effect read or write");
    check("plan", "fn f() { format!(\"{}\", std::env::var(x)) }", "needs the effect read");
    check("host", "fn f() { std::fs::remove_file(x) }", "needs the effect write");
    check("host", "use std::process::{self, Command};", "needs the effect exec");
    check("plan", "use nix::unistd::getuid;", "needs the effect");
    check("plan", "use std::{io, net::TcpStream};", "needs the effect net");
    check("nowhere", "", "no line of the map");
}

#[test]
fn what_only_tests_compile_is_free() {
    check("plan", "#[cfg(test)] mod tests { use crate::report; fn f() { std::fs::read(x) } } fn g() {}", "");
    check("plan", "#[cfg(test)] mod tests; use std::fs;", "needs the effect read or write");
    check("plan", "// use crate::report;\nconst A: &str = \"std::fs::read\";", "");
}

fn mentions(tokens: TokenStream, word: &str) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == word,
        TokenTree::Group(group) => mentions(group.stream(), word),
        _ => false,
    })
}

#[test]
fn unsafe_stands_in_one_file_and_every_block_says_why_it_holds() {
    if no_sources() {
        return;
    }
    for directory in ["src", "starter/src", "tests", "benches"] {
        for source in sources(directory) {
            if source.path.ends_with("starter/src/sys.rs") {
                continue;
            }
            assert!(!mentions(source.tokens(), "unsafe"), "{} holds `unsafe`", source.path.display());
        }
    }
    let sys = std::fs::read_to_string(checkout().join("starter/src/sys.rs")).expect("sys.rs");
    let lines: Vec<&str> = sys.lines().map(str::trim).collect();
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("//") || !line.contains("unsafe {") {
            continue;
        }
        // The comment may stand before a statement whose later line holds the block.
        let before = lines[..at].iter().rev();
        let before =
            before.skip_while(|line| !line.starts_with("//") && !line.ends_with([';', '{', '}']) && !line.is_empty());
        let mut comment = before.take_while(|line| line.starts_with("//"));
        assert!(comment.any(|line| line.starts_with("// SAFETY:")), "sys.rs:{}: no `// SAFETY:` before it", at + 1);
    }
}

#[test]
fn sifu_forbids_unsafe_code() {
    if no_sources() {
        return;
    }
    for root in ["src/lib.rs", "src/main.rs"] {
        let text = std::fs::read_to_string(checkout().join(root)).expect("a crate root");
        assert!(text.contains("#![forbid(unsafe_code)]"), "{root} does not forbid it");
    }
}

#[test]
fn the_starter_depends_on_libc_and_nix_alone() {
    if no_sources() {
        return;
    }
    let manifest = std::fs::read_to_string(checkout().join("starter/Cargo.toml")).expect("the starter's manifest");
    let section = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).unwrap_or_default();
    let names: Vec<&str> =
        section.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.trim()).collect();
    assert_eq!(names, ["libc", "nix"]);
    let kinds = manifest.lines().filter(|line| line.starts_with('[') && line.contains("dependencies")).count();
    assert_eq!(kinds, 1, "no other table of dependencies");
}

#[test]
fn the_starter_starts_no_thread() {
    if no_sources() {
        return;
    }
    for source in sources("starter/src") {
        let thread = source.paths().into_iter().find(|path| path.starts_with(&["std".into(), "thread".into()]));
        assert_eq!(thread, None, "{}: unshare(CLONE_NEWUSER) refuses a process with threads", source.path.display());
    }
}

#[test]
fn only_main_exits_and_only_cli_and_report_print() {
    if no_sources() {
        return;
    }
    for source in sources("src") {
        let place = source.path.display();
        let exits = source.paths().iter().any(|path| path.ends_with(&["process".into(), "exit".into()]));
        // The shell as a program has a time limit, which ends the process whatever its threads do.
        assert!(!exits || source.module == ["main"] || source.module == ["shell", "process"], "{place} exits");
        let prints =
            ["print", "println", "eprint", "eprintln", "dbg"].iter().any(|name| calls_macro(source.tokens(), name));
        let speaker = source.module.first().is_some_and(|room| room == "cli" || room == "report");
        assert!(!prints || speaker, "{place} prints");
    }
}

/// Whether `name!` is called outside of what only tests compile.
fn calls_macro(tokens: TokenStream, name: &str) -> bool {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if let Some(after) = skip_test_item(&tokens, at) {
            at = after;
            continue;
        }
        let found = match &tokens[at] {
            TokenTree::Group(group) => calls_macro(group.stream(), name),
            TokenTree::Ident(ident) if ident == name => {
                matches!(tokens.get(at + 1), Some(TokenTree::Punct(mark)) if mark.as_char() == '!')
            }
            _ => false,
        };
        if found {
            return true;
        }
        at += 1;
    }
    false
}

#[test]
fn every_module_file_opens_by_saying_what_it_is() {
    if no_sources() {
        return;
    }
    for directory in ["src", "starter/src", "tests", "benches"] {
        for source in sources(directory) {
            assert!(source.text.starts_with("//! "), "{} does not open with `//!`", source.path.display());
        }
    }
}

#[test]
fn no_module_is_named_utils() {
    if no_sources() {
        return;
    }
    for source in sources("src").iter().chain(&sources("starter/src")) {
        let name = source.module.last().map_or("", String::as_str);
        assert!(!["util", "utils", "helpers", "misc", "common"].contains(&name), "{}", source.path.display());
    }
}

#[test]
fn no_test_file_is_forgotten() {
    if no_sources() {
        return;
    }
    let main = std::fs::read_to_string(checkout().join("tests/main.rs")).expect("tests/main.rs");
    for source in sources("tests") {
        let name = &source.module[0];
        assert!(name == "main" || main.contains(&format!("mod {name};")), "tests/main.rs does not name {name}");
    }
}
