//! The topology in Graphviz's language: `netobs topology --output dot | dot -Tsvg`.

use super::{
    graph::Topology,
    picture::{Line, Node, Picture, Shape},
};

/// Lines end in `\n`.
pub fn dot(topology: &Topology) -> String {
    let picture = Picture::of(topology);
    let mut text = String::from("digraph netobs {\n  rankdir=LR;\n  node [shape=box];\n");
    for (at, node) in picture.boxes.iter().enumerate() {
        text += &format!("  n{at} [{}label={}];\n", style(node), quoted(&node.text));
    }
    for (at, frame) in picture.frames.iter().enumerate() {
        let boxes: String = frame.boxes.iter().map(|at| format!("n{at}; ")).collect();
        let label = quoted(std::slice::from_ref(&frame.text));
        text += &format!("  subgraph cluster_{at} {{ label={label}; {boxes}}}\n");
    }
    for Line { from, to, text: label } in &picture.lines {
        let label = if label.is_empty() {
            String::new()
        } else {
            format!(", label={}", quoted(std::slice::from_ref(label)))
        };
        text += &format!("  n{from} -> n{to} [dir=none{label}];\n");
    }
    text + "}\n"
}

const fn style(node: &Node) -> &'static str {
    match node.shape {
        Shape::Engine => "shape=folder, ",
        Shape::Network => "style=bold, ",
        Shape::Interface => "style=rounded, ",
        Shape::Container => "shape=box3d, ",
        Shape::Port => "shape=cds, ",
    }
}

/// A double-quoted string, in which only quote and backslash mean something to the language, and `&` to the
/// labels (they know HTML's entities). Control characters are visible by now.
fn quoted(lines: &[String]) -> String {
    let escape = |line: &String| line.replace('\\', "\\\\").replace('"', "\\\"").replace('&', "&amp;");
    format!("\"{}\"", lines.iter().map(escape).collect::<Vec<_>>().join("\\n"))
}
