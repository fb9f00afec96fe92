//! The import rule: who may know whom (ARCHITECTURE.md).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::bail;

use crate::process::root;

/// A folder or file under `netobs/src`, and what its code must not mention.
struct Rule {
    place: &'static str,
    forbidden: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule {
        place: "model",
        forbidden: &[
            "aya",
            "tokio",
            "bollard",
            "tonic",
            "axum",
            "ratatui",
            "crossterm",
            "libc",
            "nix",
            "std::fs",
            "std::process",
            "std::thread",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "Instant::now",
            "SystemTime::now",
            "crate::ebpf",
            "crate::discovery",
            "crate::output",
            "crate::agent",
            "crate::netlink",
        ],
    },
    Rule {
        place: "output",
        forbidden: &[
            "aya",
            "tokio",
            "bollard",
            "tonic",
            "axum",
            "crate::ebpf",
            "crate::discovery",
            "crate::agent",
            "crate::netlink",
            "Instant::now",
            "SystemTime::now",
            "std::fs",
        ],
    },
    Rule {
        place: "ebpf",
        forbidden: &["bollard", "tokio", "crate::discovery", "crate::output", "crate::agent"],
    },
    Rule { place: "discovery", forbidden: &["aya", "crate::ebpf", "crate::output", "crate::agent"] },
    Rule { place: "netlink.rs", forbidden: &["aya", "tokio", "crate::"] },
    Rule { place: "privileges.rs", forbidden: &["aya", "tokio", "crate::"] },
    Rule { place: "certificates.rs", forbidden: &["aya", "tokio", "crate::"] },
];

pub fn check() -> anyhow::Result<()> {
    let source = root().join("netobs/src");
    let mut violations = Vec::new();
    for rule in RULES {
        let place = source.join(rule.place);
        if !place.exists() {
            bail!("the import rule names {}, which does not exist", place.display());
        }
        for file in rust_files(&place)? {
            let text = fs::read_to_string(&file)?;
            for (line, word) in violations_in(&text, rule.forbidden) {
                violations.push(format!("{}:{line}: {} must not know {word}", file.display(), rule.place));
            }
        }
    }
    if !violations.is_empty() {
        bail!("import rule (ARCHITECTURE.md):\n{}", violations.join("\n"));
    }
    println!("imports: as ARCHITECTURE.md has them");
    Ok(())
}

/// Lines (from 1) that mention a forbidden path outside comments and tests.
fn violations_in<'a>(text: &str, forbidden: &[&'a str]) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            // An item of one line is left out; what is longer is the tests, at the end.
            if lines.next().is_some_and(|(_, item)| item.ends_with(';')) {
                continue;
            }
            break;
        }
        let mut code = without_comment(line).to_owned();
        if let Some(tree) =
            code.trim_start().strip_prefix("pub ").unwrap_or(code.trim_start()).strip_prefix("use ")
        {
            let mut tree = tree.to_owned();
            while !tree.contains(';') {
                let Some((_, line)) = lines.next() else { break };
                tree += without_comment(line).trim();
            }
            code = paths(tree.split(';').next().unwrap_or_default()).join(" ");
        }
        found.extend(forbidden.iter().filter(|word| mentions(&code, word)).map(|word| (number + 1, *word)));
    }
    found
}

fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// What a tree of imports names, each path whole.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for character in inner.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("one at least").push(character);
    }
    let named = parts.iter().filter(|part| !part.trim().is_empty()).flat_map(|part| paths(part));
    named.map(|path| format!("{prefix}{path}")).collect()
}

/// A crate counts as the beginning of a path only; what has a path, or the name of a type, wherever it is.
fn mentions(line: &str, word: &str) -> bool {
    let is_crate = !word.contains("::") && word.starts_with(char::is_lowercase);
    let of_name = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + word.len()..]);
        let begins = !(before.ends_with(of_name) || is_crate && before.ends_with(':'));
        let ends = word.ends_with("::") || !after.starts_with(of_name);
        begins && ends && (!is_crate || after.starts_with("::"))
    })
}

fn rust_files(place: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if place.is_file() {
        return Ok(vec![place.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_found() {
        let text = "use std::fmt;\nuse tokio::sync::mpsc;\nlet now = std::time::Instant::now();\n";
        assert_eq!(violations_in(text, &["tokio", "std::fs"]), [(2, "tokio")]);
        assert_eq!(violations_in("use crate::ebpf::Observer;", &["crate::ebpf"]), [(1, "crate::ebpf")]);
        let text = "#[cfg(test)]\nmod tests;\nuse tokio::sync;\n";
        assert_eq!(violations_in(text, &["tokio"]), [(3, "tokio")], "after tests that are elsewhere");
        for text in ["let t = Instant::now();", "let t = std::time::Instant::now();"] {
            assert_eq!(violations_in(text, &["Instant::now"]), [(1, "Instant::now")], "{text}");
        }
        for text in
            ["use std::net::TcpStream;", "let s = std::net::TcpStream::connect(a)?;", "fn f(s: TcpStream) {}"]
        {
            assert_eq!(violations_in(text, &["TcpStream"]), [(1, "TcpStream")], "{text}");
        }
        let text = "use std::{\n    fmt,\n    collections::{BTreeMap, HashMap},\n    fs, thread,\n};\nfs::read(a);\n";
        assert_eq!(
            violations_in(text, &["std::fs", "std::thread", "std::process"]),
            [(1, "std::fs"), (1, "std::thread")]
        );
        assert_eq!(violations_in("use crate::model::State;", &["crate::"]), [(1, "crate::")], "any of ours");
        let text = "pub use crate::{agent::Agent, model};\nlet x = 1;";
        assert_eq!(violations_in(text, &["crate::agent"]), [(1, "crate::agent")]);
    }

    #[test]
    fn comments_tests_and_other_names_are_not() {
        for text in [
            "// tokio::spawn is not for here",
            "use my_tokio::x;",
            "use crate::{\n    tokio_like::X,\n};",
            "#[cfg(test)]\nmod tests {\n    use tokio::test;\n}",
            "#[cfg(test)]\nuse tokio::test;",
        ] {
            assert!(violations_in(text, &["tokio"]).is_empty(), "{text}");
        }
    }
}
