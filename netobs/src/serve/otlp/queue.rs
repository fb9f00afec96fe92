//! What waits for the collector: bounded, the oldest goes first, and each data point or record that was made is sent,
//! waits, or is counted as lost.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    model::snapshot::{OtlpHealth, Sent, by_name},
    output::otlp::Message,
};

/// Bytes that wait, of metrics and of logs each.
pub const MOST_BYTES: usize = 16 << 20;

/// Causes of loss.
const QUEUE_FULL: &str = "queue_full";
const REFUSED: &str = "refused";
const REJECTED: &str = "rejected";

/// Of one signal.
pub struct Queue {
    backlog: Mutex<Backlog>,
    added: Notify,
}

impl Queue {
    pub fn new(most_bytes: usize) -> Self {
        Self { backlog: Mutex::new(Backlog { most_bytes, ..Backlog::default() }), added: Notify::new() }
    }

    pub fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, messages: Vec<Message>) {
        messages.into_iter().for_each(|message| self.backlog().push(message));
        self.added.notify_one();
    }

    /// The oldest, when there is one; its place is kept until it is told what became of it.
    pub async fn next(&self) -> Message {
        loop {
            let next = self.backlog().take();
            match next {
                Some(message) => return message,
                None => self.added.notified().await,
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        let backlog = self.backlog();
        backlog.waiting.is_empty() && backlog.on_its_way.is_none()
    }
}

#[derive(Debug, Default)]
pub struct Backlog {
    most_bytes: usize,
    waiting: VecDeque<Message>,
    /// Of `waiting` and of what is on its way.
    bytes: usize,
    /// Bytes and items of what the sender has.
    on_its_way: Option<(usize, u64)>,
    sent: u64,
    queue_full: u64,
    refused: u64,
    rejected: u64,
    failed_requests: u64,
}

impl Backlog {
    fn push(&mut self, message: Message) {
        let bytes = message.body.len();
        let on_its_way = self.on_its_way.map_or(0, |(bytes, _)| bytes);
        if on_its_way + bytes > self.most_bytes {
            self.queue_full += message.items;
            return;
        }
        while self.bytes + bytes > self.most_bytes {
            let Some(oldest) = self.waiting.pop_front() else { break };
            self.bytes -= oldest.body.len();
            self.queue_full += oldest.items;
        }
        self.bytes += bytes;
        self.waiting.push_back(message);
    }

    fn take(&mut self) -> Option<Message> {
        let message = self.waiting.pop_front()?;
        self.on_its_way = Some((message.body.len(), message.items));
        Some(message)
    }

    fn arrived(&mut self) -> u64 {
        let (bytes, items) = self.on_its_way.take().unwrap_or_default();
        self.bytes -= bytes;
        items
    }

    /// The collector has taken what was on its way, but for some.
    pub fn taken(&mut self, rejected: u64) {
        let items = self.arrived();
        let rejected = rejected.min(items);
        self.rejected += rejected;
        self.sent += items - rejected;
    }

    /// The collector does not want it.
    pub fn refused(&mut self) {
        self.failed_requests += 1;
        self.refused += self.arrived();
    }

    /// It has not arrived, as far as is known: it is the next again.
    pub fn failed(&mut self, message: Message) {
        self.failed_requests += 1;
        self.on_its_way = None;
        self.waiting.push_front(message);
    }

    /// Items that were lost, whatever the cause.
    pub const fn lost(&self) -> u64 {
        self.queue_full + self.refused + self.rejected
    }

    fn told(&self) -> Sent {
        let on_its_way = self.on_its_way.map_or(0, |(_, items)| items);
        Sent {
            sent: self.sent,
            waiting: self.waiting.iter().map(|message| message.items).sum::<u64>() + on_its_way,
            lost: by_name([
                (QUEUE_FULL, self.queue_full),
                (REFUSED, self.refused),
                (REJECTED, self.rejected),
            ]),
        }
    }
}

pub fn health(metrics: &Queue, logs: Option<&Queue>) -> OtlpHealth {
    let metrics = metrics.backlog();
    let mut health = OtlpHealth {
        metrics: metrics.told(),
        logs: None,
        waiting_bytes: metrics.bytes as u64,
        failed_requests: metrics.failed_requests,
    };
    if let Some(logs) = logs.map(Queue::backlog) {
        health.logs = Some(logs.told());
        health.waiting_bytes += logs.bytes as u64;
        health.failed_requests += logs.failed_requests;
    }
    health
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(bytes: usize, items: u64) -> Message {
        Message { body: Bytes::from(vec![0; bytes]), items }
    }

    #[test]
    fn what_is_made_is_sent_waits_or_is_lost() {
        let mut backlog = Backlog { most_bytes: 100, ..Backlog::default() };
        let mut made = 0;
        for n in 0..200 {
            let message = message(7 + n % 40, n as u64 % 9);
            made += message.items;
            backlog.push(message);
            // Whatever is on its way keeps its place.
            let taken = if n % 5 < 3 { backlog.take() } else { None };
            match (n % 5, taken) {
                (0, Some(_)) => backlog.taken(n as u64 % 3),
                (1, Some(_)) => backlog.refused(),
                (_, Some(taken)) => {
                    let more = self::message(60, 1);
                    made += more.items;
                    backlog.push(more);
                    backlog.failed(taken);
                }
                (_, None) => {}
            }
            let told = backlog.told();
            assert!(backlog.bytes <= 100, "{}", backlog.bytes);
            assert_eq!(told.sent + told.waiting + told.lost.values().sum::<u64>(), made);
            let waiting: usize = backlog.waiting.iter().map(|message| message.body.len()).sum();
            assert_eq!(backlog.bytes, waiting);
        }
        assert!(backlog.sent > 0 && backlog.queue_full > 0 && backlog.refused > 0 && backlog.rejected > 0);
        backlog.push(message(10, 1));
        backlog.push(message(101, 5));
        assert!(!backlog.waiting.is_empty(), "what is too much makes no room that it then does not take");
    }
}
