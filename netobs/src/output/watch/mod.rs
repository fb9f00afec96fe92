//! The full-screen view: a state that takes snapshots and keys, and a function that draws it.
//!
//! Knows no terminal: whoever owns one feeds [`View::update`] and [`View::key`], and calls [`draw`].

mod columns;
mod detail;
mod draw;
mod drops;
mod flows;
mod help;
mod history;
mod input;
mod networks;
mod view;

pub use draw::{MIN_HEIGHT, MIN_WIDTH, draw};
pub use input::{Action, action};
pub use view::{FLOWS_MAX, Flow, Sort, Tab, View};

#[cfg(test)]
mod tests;
