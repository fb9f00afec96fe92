//! A terminal that tmux plays, for what takes over the screen.

use std::process::Command;

use crate::{program::LIMIT, unique, wait_for};

/// A server of its own with a shell in it; ends with the value, and so does all that runs there.
pub struct Terminal(String);

impl Terminal {
    pub fn new() -> Self {
        let terminal = Self(unique("screen"));
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "35", "sh"]);
        terminal
    }

    /// # Panics
    /// If there is no tmux.
    pub fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux").args(["-L", &self.0]).args(arguments).output().expect("run tmux");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "0"])
    }

    /// Waits until the screen has it; the screen then.
    ///
    /// # Panics
    /// If it does not come.
    pub fn shows(&self, what: &str) -> String {
        wait_for(what, LIMIT, || {
            let screen = self.screen();
            if screen.contains(what) { Ok(screen) } else { Err(screen) }
        })
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}
