//! The topology as a Mermaid flowchart, for Markdown that draws them.

use super::{
    graph::Topology,
    picture::{Picture, Shape},
};

/// Lines end in `\n`.
pub fn mermaid(topology: &Topology) -> String {
    let picture = Picture::of(topology);
    let mut text = String::from("flowchart LR\n");
    for (at, node) in picture.boxes.iter().enumerate() {
        let lines: Vec<String> = node.text.iter().map(|line| escaped(line)).collect();
        let (open, close) = brackets(node.shape);
        text += &format!("  n{at}{open}\"{}\"{close}\n", lines.join("<br/>"));
    }
    for (at, frame) in picture.frames.iter().enumerate().filter(|(_, frame)| !frame.boxes.is_empty()) {
        text += &format!("  subgraph s{at}[\"{}\"]\n", escaped(&frame.text));
        for at in &frame.boxes {
            text += &format!("    n{at}\n");
        }
        text += "  end\n";
    }
    for line in &picture.lines {
        let label =
            if line.text.is_empty() { String::new() } else { format!("|\"{}\"|", escaped(&line.text)) };
        text += &format!("  n{} ---{label} n{}\n", line.from, line.to);
    }
    text
}

const fn brackets(shape: Shape) -> (&'static str, &'static str) {
    match shape {
        Shape::Engine => ("[[", "]]"),
        Shape::Network => ("([", "])"),
        Shape::Interface => ("(", ")"),
        Shape::Container => ("[", "]"),
        Shape::Port => (">", "]"),
    }
}

/// Only what is known to mean nothing stays: quotes, brackets, `#`, `;`, `%%`, backticks and HTML all mean
/// something to Mermaid in one place or another, and so does `:` with a `#` behind it.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_alphanumeric() || " -.,/=".contains(character) {
            safe.push(character);
        } else {
            safe += &format!("#{};", u32::from(character));
        }
    }
    safe
}
