//! Views of a snapshot. Each is a function of a snapshot, or of a few in a row, and knows nothing else.

pub mod csv;
pub mod drops;
pub mod filter;
#[cfg(test)]
mod fixture;
pub mod flows;
pub mod format;
#[cfg(test)]
mod hostile;
pub mod json;
pub mod otlp;
pub mod problems;
pub mod prometheus;
#[cfg(test)]
mod schema;
pub mod table;
pub mod topology;
pub mod trace;
pub mod watch;
pub mod wide;
