//! The table of network drivers: a row for each that a test run has seen work, written by the tests
//! themselves (`netobs_tests::row`).

use std::{fs, io::Write as _, path::PathBuf};

use crate::process::target;

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

/// Prints them.
pub fn print() -> std::io::Result<()> {
    let text = fs::read_to_string(file())?;
    let mut rows: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('\t')).collect();
    rows.sort_unstable();
    let width = rows.iter().map(|(driver, _)| driver.len()).max().unwrap_or_default();
    for (driver, seen) in rows {
        println!("pass  {driver:width$}  {seen}");
    }
    Ok(())
}
