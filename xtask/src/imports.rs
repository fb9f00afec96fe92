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
        let line = line.split("//").next().unwrap_or_default();
        for word in forbidden {
            if mentions(line, word) {
                found.push((number + 1, *word));
            }
        }
    }
    found
}

/// A crate's name counts only as the beginning of a path.
fn mentions(line: &str, word: &str) -> bool {
    let needle = if word.contains("::") { word.to_owned() } else { format!("{word}::") };
    line.match_indices(&needle).any(|(at, _)| {
        !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
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
        assert_eq!(violations_in("let t = Instant::now();", &["Instant::now"]), [(1, "Instant::now")]);
    }

    #[test]
    fn comments_tests_and_other_names_are_not() {
        for text in [
            "// tokio::spawn is not for here",
            "use my_tokio::x;",
            "#[cfg(test)]\nmod tests {\n    use tokio::test;\n}",
            "#[cfg(test)]\nuse tokio::test;",
        ] {
            assert!(violations_in(text, &["tokio"]).is_empty(), "{text}");
        }
    }
}
