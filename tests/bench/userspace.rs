//! Userspace's own hot code, as `cargo bench --package netobs` has measured it.

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use crate::document::{Table, Target};

const ABOUT: &str = "Userspace alone, `cargo bench --package netobs` (criterion): median, and the bounds of its 95% \
                     confidence interval.";

pub fn measure(root: &Path) -> anyhow::Result<(Vec<Table>, Vec<Target>)> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    let folder = target.join("criterion");
    let mut rows = Vec::new();
    collect(&folder, &folder, &mut rows).context("run `cargo bench --package netobs` first")?;
    rows.sort();
    let mut table = Table::new(ABOUT, &["what", "ms"]);
    for row in rows {
        table.row(&row);
    }
    Ok((vec![table], Vec::new()))
}

/// Each folder `NAME/new` has what was measured last.
fn collect(top: &Path, folder: &Path, rows: &mut Vec<[String; 2]>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let file = path.join("new/estimates.json");
        if file.exists() {
            let value: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
            let ms = |pointer: &str| {
                let ns = value.pointer(pointer).and_then(Value::as_f64).context("an estimate")?;
                anyhow::Ok(format!("{:.3}", ns / 1e6))
            };
            let [median, least, most] =
                ["point_estimate", "confidence_interval/lower_bound", "confidence_interval/upper_bound"]
                    .map(|part| ms(&format!("/median/{part}")));
            let name = path.strip_prefix(top)?.to_string_lossy().replace('/', ": ");
            rows.push([name, format!("{} ({} to {})", median?, least?, most?)]);
        } else {
            collect(top, &path, rows)?;
        }
    }
    Ok(())
}
