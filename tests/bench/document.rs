//! What was measured, kept in `docs/benchmarks.json`, and the tables made of it: in `docs/benchmarks.md`, those with a
//! name in `docs/scale.md`, and in README.md the short one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// Parts by name.
pub type Parts = BTreeMap<String, Part>;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    pub machine: Machine,
    /// Percentage of all CPUs that somebody else used right before.
    #[serde(default)]
    pub busy: u32,
    pub tables: Vec<Table>,
    pub targets: Vec<Target>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// Its place in `docs/scale.md`; none: it is in `docs/benchmarks.md`, with its part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it shows and how that was measured.
    pub about: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    pub what: String,
    pub target: String,
    pub measured: String,
    pub is_met: bool,
}

/// What measured figures depend on beside the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    /// Those that the kernel says it has on.
    pub mitigations: Vec<String>,
}

impl Machine {
    pub fn this() -> anyhow::Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cpu =
            model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.trim().to_owned());
        let mut mitigations = Vec::new();
        for entry in fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten() {
            let path = entry?.path();
            let text = fs::read_to_string(&path).unwrap_or_default();
            if let Some(how) = text.trim().strip_prefix("Mitigation: ") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                mitigations.push(format!("{name}: {how}"));
            }
        }
        mitigations.sort();
        let cpus = std::thread::available_parallelism()?.get();
        Ok(Self { kernel, cpu, cpus, mitigations })
    }

    fn line(&self) -> String {
        let mitigations = match self.mitigations.as_slice() {
            [] => "none".to_owned(),
            some => some.join("; "),
        };
        format!("Linux {}, {} × {}. Mitigations: {mitigations}.", self.kernel, self.cpus, self.cpu)
    }
}

impl Table {
    pub fn new(about: &str, head: &[&str]) -> Self {
        let head = head.iter().map(|&text| text.to_owned()).collect();
        Self { name: None, about: about.to_owned(), head, rows: Vec::new() }
    }

    /// With a place of its own in `docs/scale.md`.
    pub fn named(name: &str, about: &str, head: &[&str]) -> Self {
        Self { name: Some(name.to_owned()), ..Self::new(about, head) }
    }

    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = vec!["---".to_owned(); self.head.len()];
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}\n\n{}{}{rows}", self.about, line(&self.head), line(&rule).replace(' ', ""))
    }
}

impl Part {
    pub fn markdown(&self) -> String {
        let mut texts: Vec<String> = self.tables.iter().map(Table::markdown).collect();
        texts.extend(self.noise());
        texts.join("\n")
    }

    fn noise(&self) -> Option<String> {
        (self.busy > QUIET).then(|| {
            format!(
                "Not measured on a quiet machine: {}% of its CPUs were busy with something else right before.\n",
                self.busy
            )
        })
    }

    /// What is in `docs/scale.md`: its tables, and where they were measured.
    fn of_scale(&self) -> Vec<(String, String)> {
        let named = self.tables.iter().filter_map(|table| Some((table.name.clone()?, table.markdown())));
        let mut sections: Vec<_> = named.collect();
        if !sections.is_empty() {
            let lines: Vec<String> = [self.machine.line() + "\n"].into_iter().chain(self.noise()).collect();
            sections.push(("machine".to_owned(), lines.join("\n")));
        }
        sections
    }
}

/// Percentage of CPUs that always somebody uses.
const QUIET: u32 = 5;

/// How busy the CPUs are while this process is not.
pub fn busy() -> anyhow::Result<u32> {
    // All ticks, and of these idle ones.
    let ticks = || -> anyhow::Result<(u64, u64)> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().filter_map(|ticks| ticks.parse().ok()).collect();
        Ok((ticks.iter().take(8).sum(), ticks.iter().skip(3).take(2).sum()))
    };
    let before = ticks()?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let after = ticks()?;
    let all = (after.0 - before.0).max(1);
    Ok((100 - ((after.1 - before.1) * 100 / all).min(100)) as u32)
}

/// The targets of all parts, in the order of `names`.
fn targets(parts: &Parts, names: &[String]) -> Table {
    let mut table = Table::new("", &["what", "target", "measured", ""]);
    for target in names.iter().filter_map(|name| parts.get(name)).flat_map(|part| &part.targets) {
        let Target { what, target, measured, is_met } = target.clone();
        table.row(&[what, target, measured, if is_met { "met" } else { "**missed**" }.to_owned()]);
    }
    table
}

/// Puts parts that were measured now to the ones kept, and makes the tables of all.
pub fn write(root: &Path, measured: Parts, names: &[String]) -> anyhow::Result<()> {
    let kept = root.join("docs/benchmarks.json");
    let mut parts: Parts = match fs::read_to_string(&kept) {
        Ok(text) => serde_json::from_str(&text).context("docs/benchmarks.json")?,
        Err(_) => Parts::new(),
    };
    parts.extend(measured);
    fs::write(&kept, serde_json::to_string_pretty(&parts)? + "\n")?;

    let mut sections: Vec<(String, String)> = Vec::new();
    let mut machines: Vec<(&Machine, Vec<&str>)> = Vec::new();
    for name in names {
        let Some(part) = parts.get(name) else { continue };
        let of_scale = part.of_scale();
        if !of_scale.is_empty() {
            replace(&root.join("docs/scale.md"), &of_scale)?;
            continue;
        }
        sections.push((name.clone(), part.markdown()));
        match machines.iter_mut().find(|(machine, _)| **machine == part.machine) {
            Some((_, names)) => names.push(name),
            None => machines.push((&part.machine, vec![name])),
        }
    }
    let machines: Vec<String> = match machines.as_slice() {
        [(only, _)] => vec![only.line()],
        several => several
            .iter()
            .map(|(machine, names)| format!("{}: {}", names.join(", "), machine.line()))
            .collect(),
    };
    sections.push(("machine".to_owned(), machines.join("\n\n") + "\n"));
    let targets = targets(&parts, names);
    sections.push(("targets".to_owned(), targets.markdown().trim_start().to_owned()));
    replace(&root.join("docs/benchmarks.md"), &sections)?;

    let mut short = Table::new("", &["what", "measured"]);
    for row in targets.rows {
        short.row(&[row[0].clone(), row[2].clone()]);
    }
    replace(&root.join("README.md"), &[("short".to_owned(), short.markdown().trim_start().to_owned())])
}

/// What is between `<!-- bench: NAME -->` and `<!-- end -->`.
fn replace(file: &PathBuf, sections: &[(String, String)]) -> anyhow::Result<()> {
    const END: &str = "<!-- end -->";
    let mut text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    for (name, section) in sections {
        let begin = format!("<!-- bench: {name} -->\n");
        let from = text.find(&begin).with_context(|| format!("no {} in {}", begin.trim(), file.display()))?;
        let from = from + begin.len();
        let length = text[from..].find(END).with_context(|| format!("no end of {name}"))?;
        text.replace_range(from..from + length, &format!("\n{section}\n"));
    }
    fs::write(file, text)?;
    Ok(())
}

/// Least, median and most of some rounds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    /// # Panics
    /// Of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Self { least: values[0], median, most: values[values.len() - 1] }
    }

    /// Median, and in brackets least to most.
    pub fn show(self, decimals: usize) -> String {
        let Self { least, median, most } = self;
        format!("{median:.decimals$} ({least:.decimals$} to {most:.decimals$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "a\n<!-- bench: x -->\nold\n<!-- end -->\nb\n<!-- bench: y -->\nkept\n<!-- end -->\n";
        fs::write(file.path(), text).expect("write");
        replace(&file.path().to_owned(), &[("x".to_owned(), "| new |\n".to_owned())]).expect("replace");
        assert_eq!(
            fs::read_to_string(file.path()).expect("read"),
            "a\n<!-- bench: x -->\n\n| new |\n\n<!-- end -->\nb\n<!-- bench: y -->\nkept\n<!-- end -->\n"
        );
        assert!(replace(&file.path().to_owned(), &[("z".to_owned(), String::new())]).is_err());
    }

    #[test]
    fn a_median_of_an_even_number_is_between_the_middle_ones() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.5, 4.0));
        assert_eq!(spread.show(1), "2.5 (1.0 to 4.0)");
    }
}
