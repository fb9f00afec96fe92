//! A project of the real docker-compose beside a container of `docker run`: shown by project and service in
//! every output, and kept apart as it is.

use std::process::{Command, Output};

use netobs_tests::{
    docker::{self, Container, docker},
    http,
    program::{self, Agent, LIMIT, Watch, number},
    row, unique, wait_for,
};
use serde_json::Value;

const FILE: &str = "
version: '2.4'
services:
  front:
    image: netobs-test:1
    command: sleep 1000
    stop_signal: SIGKILL
  back:
    image: netobs-test:1
    command: sleep 1000
    stop_signal: SIGKILL
";

/// Two services on the project's default network, taken down with the value.
struct Project {
    name: String,
    folder: tempfile::TempDir,
}

impl Project {
    fn up() -> Self {
        docker::image();
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("docker-compose.yml"), FILE).expect("write");
        let project = Self { name: unique("shop"), folder };
        project.compose(&["up", "-d"]);
        project
    }

    /// Runs `docker-compose` and returns what it prints.
    fn compose(&self, arguments: &[&str]) -> String {
        let output = self.try_compose(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "docker-compose {arguments:?}: {}\n{out}{err}", output.status);
        out.trim().to_owned()
    }

    fn try_compose(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("docker-compose");
        command.args(["--project-name", &self.name]).args(arguments).current_dir(self.folder.path());
        command.output().expect("run docker-compose")
    }

    /// The ID of a service's container.
    fn container(&self, service: &str) -> String {
        self.compose(&["ps", "-q", service])
    }

    fn network(&self) -> String {
        format!("{}_default", self.name)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.try_compose(&["down", "--volumes"]);
    }
}

fn available(test: &str) -> bool {
    let there = Command::new("docker-compose").arg("version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        netobs_tests::skip(test, "no docker-compose");
        return false;
    }
    docker::available(test)
}

fn by_id<'a>(snapshot: &'a Value, id: &str) -> Option<&'a Value> {
    snapshot["containers"].as_array()?.iter().find(|container| container["id"] == id)
}

#[test]
fn scenario_6_a_project_beside_a_container() {
    if !available("scenario 6") {
        return;
    }
    let beside = Container::run("beside", &[]);
    let project = Project::up();
    let [front, back] = ["front", "back"].map(|service| project.container(service));
    let watch = Watch::start(None, &[]);
    for (service, id) in [("front", &front), ("back", &back)] {
        let now = watch.until(service, |snapshot| {
            by_id(snapshot, id).filter(|now| !now["interfaces"][0]["host_interface"].is_null()).cloned()
        });
        assert_eq!(now["compose"], serde_json::json!({"project": project.name, "service": service}));
        assert_eq!(now["networks"], serde_json::json!([project.network()]));
    }
    assert!(watch.container(&beside.name)["compose"].is_null());

    docker(&["exec", &front, "ping", "-q", "-c", "10", "-i", "0.05", "back"]);
    let address = beside.address("bridge");
    let lost =
        docker::try_docker(&["exec", &front, "ping", "-q", "-c", "3", "-i", "0.05", "-W", "1", &address]);
    assert!(!lost.status.success(), "there is no path: {}", String::from_utf8_lossy(&lost.stdout));
    let icmp = |snapshot: &Value, id: &str| {
        let now = by_id(snapshot, id)?;
        Some(["tx", "rx"].map(|direction| number(now, &format!("{direction}.protocol.icmp.packets"))))
    };
    watch.until("10 pings between the services, and 3 that arrive nowhere", |snapshot| {
        let counts = [front.as_str(), &back, &beside.id].map(|id| icmp(snapshot, id));
        (counts == [Some([13, 10]), Some([10, 10]), Some([0, 0])]).then_some(())
    });

    two_networks(&watch.fresh(), &project, &beside);
    in_csv(&project, &front, &beside);
    in_the_wide_table(&project);
    in_prometheus(&project, [&front, &back]);
    in_the_topology(&project, [&front, &back], &beside);
    row(
        "Compose project",
        "two services by project and service in every output; no path to the default bridge",
    );
}

/// Of different addresses, each with its own containers.
fn two_networks(snapshot: &Value, project: &Project, beside: &Container) {
    let [of_project, default] = [&project.network(), "bridge"].map(|name| {
        program::network(snapshot, name).unwrap_or_else(|| panic!("no network {name} in {snapshot}"))
    });
    let has = |network: &Value, name: &str| {
        network["containers"].as_array().expect("containers").iter().any(|one| one == name)
    };
    assert_eq!(of_project["containers"].as_array().map(Vec::len), Some(2), "{of_project}");
    assert!(has(&default, &beside.name) && !has(&of_project, &beside.name), "{default}");
    for service in of_project["containers"].as_array().expect("containers") {
        assert!(!has(&default, service.as_str().expect("a name")), "{default}");
    }
    let subnet = |network: &Value| network["subnets"][0]["subnet"].as_str().map(str::to_owned);
    assert!(subnet(&of_project).is_some() && subnet(&of_project) != subnet(&default), "{of_project}");
    assert_ne!(of_project["bridge"], default["bridge"]);
}

/// What a run of the program prints.
fn printed(arguments: &[&str]) -> String {
    let output = program::run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn in_csv(project: &Project, front: &str, beside: &Container) {
    let table = printed(&["watch", "--once", "--output", "csv"]);
    let cells = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut lines = table.lines().map(cells);
    let header = lines.next().expect("a header");
    let rows: Vec<Vec<String>> = lines.collect();
    let cell = |id: &str, name: &str| {
        let column = |name: &str| header.iter().position(|of| of == name).expect("a column");
        let row = rows.iter().find(|row| row[column("id")] == id).unwrap_or_else(|| panic!("{table}"));
        row[column(name)].clone()
    };
    let of = |id: &str| ["project", "service", "networks"].map(|name| cell(id, name));
    assert_eq!(of(front), [project.name.as_str(), "front", &project.network()]);
    assert_eq!(of(&beside.id), ["", "", "bridge"]);
}

fn in_the_wide_table(project: &Project) {
    let filter = format!("project={}", project.name);
    let table = printed(&["watch", "--once", "--output", "wide", "--filter", &filter]);
    let shown = |line: &str| line.split_whitespace().skip(3).take(2).map(str::to_owned).collect::<Vec<_>>();
    // The last lines may tell of the host's other interfaces.
    let rows = table.lines().skip(1).filter(|line| !line.starts_with('!'));
    let shown: Vec<Vec<String>> = rows.map(shown).collect();
    assert_eq!(shown, [[&project.name, "back"], [project.name.as_str(), "front"]], "{table}");
}

fn in_prometheus(project: &Project, ids: [&String; 2]) {
    let agent = Agent::start(&[]);
    wait_for("both services in the metrics", LIMIT, || {
        let (_, body) = http::get(agent.port, "/metrics").map_err(|error| error.to_string())?;
        let info = |id: &str, service: &str| {
            let labels = [
                format!("id=\"{}\"", &id[..12]),
                format!("compose_project=\"{}\"", project.name),
                format!("compose_service=\"{service}\""),
            ];
            let is_info = |line: &&str| line.starts_with("netobs_container_info{");
            let of = |line: &&str| labels.iter().all(|label| line.contains(label));
            body.lines().filter(is_info).filter(of).count()
        };
        let found = [info(ids[0], "front"), info(ids[1], "back")];
        if found == [1, 1] { Ok(()) } else { Err(format!("{found:?} in {body}")) }
    });
}

fn in_the_topology(project: &Project, ids: [&String; 2], beside: &Container) {
    let topology: Value = serde_json::from_str(&printed(&["topology", "--output", "json"])).expect("JSON");
    let all = |kind: &str| topology[kind].as_array().expect("an array").clone();
    let network = |name: &str| {
        let found = all("networks").into_iter().find(|one| one["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {topology}"))["key"].clone()
    };
    let (of_project, default) = (network(&project.network()), network("bridge"));
    let connected = |id: &str| -> Vec<Value> {
        let from = format!("container:{id}");
        let relations = all("relations").into_iter();
        let of = relations.filter(|one| one["kind"] == "connected" && one["from"] == from.as_str());
        of.map(|one| one["to"].clone()).collect()
    };
    for id in ids {
        assert_eq!(connected(id), std::slice::from_ref(&of_project), "{topology}");
    }
    assert_eq!(connected(&beside.id), std::slice::from_ref(&default), "{topology}");
    let pair = all("isolation").into_iter().find(|one| {
        [&one["a"], &one["b"]] == [&of_project, &default] || [&one["b"], &one["a"]] == [&of_project, &default]
    });
    let pair = pair.unwrap_or_else(|| panic!("no pair in {topology}"));
    assert_eq!((&pair["isolated"], &pair["why"]), (&true.into(), &"engine-rule".into()), "{pair}");
}
