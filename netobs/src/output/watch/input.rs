//! Keys to actions. Pure: what an action does is the view's affair.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Quit,
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Open,
    Back,
    NextSort,
    PreviousSort,
    Reverse,
    Pause,
    Help,
    Containers,
    Networks,
    Flows,
    Drops,
    NextTab,
    PreviousTab,
    EditFilter,
    /// While a filter is typed.
    Type(char),
    Erase,
    EraseAll,
    Accept,
    Cancel,
}

/// What a key means, `typing` a filter or not; none: nothing.
pub fn action(key: KeyEvent, typing: bool) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    if control {
        return match key.code {
            KeyCode::Char('c') => Some(Action::Quit),
            KeyCode::Char('u') if typing => Some(Action::EraseAll),
            _ => None,
        };
    }
    if typing {
        return match key.code {
            KeyCode::Enter => Some(Action::Accept),
            KeyCode::Esc => Some(Action::Cancel),
            KeyCode::Backspace => Some(Action::Erase),
            KeyCode::Char(character) => Some(Action::Type(character)),
            _ => None,
        };
    }
    match key.code {
        KeyCode::Char('q') => Some(Action::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Action::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Action::Down),
        KeyCode::PageUp => Some(Action::PageUp),
        KeyCode::PageDown => Some(Action::PageDown),
        KeyCode::Home | KeyCode::Char('g') => Some(Action::First),
        KeyCode::End | KeyCode::Char('G') => Some(Action::Last),
        KeyCode::Enter => Some(Action::Open),
        KeyCode::Esc => Some(Action::Back),
        KeyCode::Char('s' | '>') | KeyCode::Right => Some(Action::NextSort),
        KeyCode::Char('<') | KeyCode::Left => Some(Action::PreviousSort),
        KeyCode::Char('r') => Some(Action::Reverse),
        KeyCode::Char('p' | ' ') => Some(Action::Pause),
        KeyCode::Char('?' | 'h') => Some(Action::Help),
        KeyCode::Char('1') => Some(Action::Containers),
        KeyCode::Char('2') => Some(Action::Networks),
        KeyCode::Char('3') => Some(Action::Flows),
        KeyCode::Char('4') => Some(Action::Drops),
        KeyCode::Tab => Some(Action::NextTab),
        KeyCode::BackTab => Some(Action::PreviousTab),
        KeyCode::Char('/') => Some(Action::EditFilter),
        _ => None,
    }
}
