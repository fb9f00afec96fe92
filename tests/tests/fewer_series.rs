//! `deploy/prometheus/fewer-series.yml` and what `docs/scale.md` says of it: each family that is named there is one that
//! a node with pods really has, and each rule really drops some.

use std::{collections::BTreeSet, path::Path, process::Command};

use netobs_tests::{
    node::Node,
    prometheus::{Server, fewer_series, fewer_series_file},
    wait_for,
};

/// Rules from the top that no dashboard misses.
const UNUSED: usize = 4;

/// What the pattern of a rule matches: it has alternatives and nothing else.
fn expand(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('(') else { return vec![pattern.replace('\\', "")] };
    let (choice, after) = rest.split_once(')').expect("an end of the alternatives");
    let ends = expand(after);
    let one = |choice: &str| ends.iter().map(|end| format!("{before}{choice}{end}")).collect::<Vec<_>>();
    choice.split('|').flat_map(one).map(|text| text.replace('\\', "")).collect()
}

/// `NAME` or `NAME;LE` of each series that a rule drops.
fn dropped(rule: &str) -> Vec<String> {
    let (_, regex) = rule.split_once("regex: '").expect("a pattern");
    expand(regex.split_once('\'').expect("its end").0)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).expect(path)
}

#[test]
fn the_page_has_the_rules_as_they_are() {
    let file = std::fs::read_to_string(fewer_series_file()).expect("the rules");
    let lines = |text: &str| -> Vec<String> {
        let (_, rules) = text.split_once("metric_relabel_configs:\n").expect("rules");
        let rules = rules.split("```").next().unwrap_or_default();
        rules.lines().map(|line| line.trim().to_owned()).collect()
    };
    assert_eq!(lines(&file), lines(&read("docs/scale.md")));
}

#[test]
fn nobody_asks_for_what_the_first_rules_drop() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana");
    let dashboards = std::fs::read_dir(folder).expect("dashboards").flatten();
    let mut asked: String =
        dashboards.map(|file| std::fs::read_to_string(file.path()).expect("a dashboard")).collect();
    asked += &read("deploy/prometheus/netobs.rules.yml");
    for rule in &fewer_series()[..UNUSED] {
        for name in dropped(&rule.rule) {
            assert!(!asked.contains(&name), "{}: {name} is asked for", rule.what);
        }
    }
}

#[test]
fn all_that_is_named_is_there_and_each_rule_drops_some() {
    // The last is one of those that somebody drops packets of.
    let node = Node::new(11);
    let agent = node.agent(&[]);
    node.live(&agent);
    let text = node.metrics(&agent).expect("a scrape");
    let mut names: BTreeSet<String> = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        names.insert(name.to_owned());
        if let Some(le) = netobs_tests::node::label(line, "le") {
            names.insert(format!("{name};{le}"));
        }
    }
    for rule in fewer_series() {
        for name in dropped(&rule.rule) {
            assert!(names.contains(&name), "{}: no {name}", rule.what);
        }
    }
    let page = read("docs/scale.md");
    let named = page.split('`').skip(1).step_by(2).filter(|word| word.starts_with("netobs_"));
    for name in named.filter(|word| !word.contains(['(', '{', '*'])) {
        assert!(names.contains(name), "no {name}");
    }

    if Command::new("promtool").arg("--version").output().is_err() {
        netobs_tests::skip("fewer series", "there is no prometheus with promtool");
        return;
    }
    let checked = Command::new("promtool").args(["check", "config"]).arg(fewer_series_file()).output();
    let checked = checked.expect("run promtool");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let jobs: String = fewer_series()
        .iter()
        .enumerate()
        .map(|(at, rule)| {
            format!(
                "- {{job_name: rule-{at}, static_configs: [{{targets: ['127.0.0.1:{}']}}], \
                 metric_relabel_configs: [{}]}}\n",
                agent.port, rule.rule
            )
        })
        .collect();
    node.host.inside(|| {
        let server = Server::start(&jobs);
        for (at, rule) in fewer_series().iter().enumerate() {
            let query = format!(
                "scrape_samples_scraped{{job=\"rule-{at}\"}} - scrape_samples_post_metric_relabeling{{job=\"rule-{at}\"}}"
            );
            let fewer = server.until(&query, |_| true);
            println!("{}: {fewer} series fewer", rule.what);
            wait_for(&rule.what, netobs_tests::program::LIMIT, || match server.query(&query)?.as_slice() {
                [fewer] if *fewer > 0.0 => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
    });
}
