//! The table of network drivers: a row for each that a test run has seen work, written by the tests
//! themselves (`netobs_tests::row`).

use std::{fs, io::Write as _, path::PathBuf};

use crate::process::target;

/// Drivers, and what people do with them, that a run with everything has to have seen.
const EXPECTED: [&str; 21] = [
    "bridge (default)",
    "bridge, user-defined",
    "bridge with IPv6",
    "Compose project",
    "host",
    "none",
    "container:NAME",
    "macvlan",
    "ipvlan mode l2",
    "ipvlan mode l3",
    "ipvlan mode l3s",
    "overlay",
    "CNI bridge",
    "CNI without a bridge",
    "podman bridge",
    "podman pod",
    "published ports",
    "published UDP ports",
    "short-lived",
    "lifecycle",
    "scenario 9",
];

/// Where the tests note their rows: `DRIVER<tab>WHAT WAS SEEN`.
pub fn file() -> PathBuf {
    target().join("netobs-test-rows")
}

/// Forgets what earlier runs have noted.
pub fn clear() -> std::io::Result<()> {
    fs::write(file(), "")
}

/// Adds rows that were seen somewhere else than on this machine.
pub fn add(rows: &[&str], place: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(file())?;
    rows.iter().try_for_each(|row| writeln!(file, "{row} ({place})"))
}

/// Prints them; those that are missing.
pub fn print() -> std::io::Result<Vec<&'static str>> {
    let text = fs::read_to_string(file())?;
    let mut rows: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('\t')).collect();
    rows.sort_unstable();
    let width = rows.iter().map(|(driver, _)| driver.len()).max().unwrap_or_default();
    for (driver, seen) in rows {
        println!("pass  {driver:width$}  {seen}");
    }
    Ok(missing(&text))
}

fn missing(noted: &str) -> Vec<&'static str> {
    let seen: Vec<&str> = noted.lines().filter_map(|line| Some(line.split_once('\t')?.0)).collect();
    EXPECTED.into_iter().filter(|driver| !seen.contains(driver)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_nobody_noted_is_missing() {
        let mut all = EXPECTED.map(|driver| format!("{driver}\tten pings"));
        assert_eq!(missing(&all.join("\n")), [""; 0]);
        all[8] = "ipvlan\tten pings".to_owned();
        assert_eq!(missing(&all.join("\n")), [EXPECTED[8]]);
    }
}
