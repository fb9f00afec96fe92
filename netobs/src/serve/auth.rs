//! Basic authentication: who may ask.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use anyhow::Context as _;
use axum::http::{HeaderMap, header};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bcrypt::HashParts;
use ring::{hmac, rand::SystemRandom};
use tokio::sync::Semaphore;

/// Credentials whose check is remembered, good and bad apart. When there are more, all are forgotten.
const REMEMBERED: usize = 1000;

/// Names and bcrypt hashes of passwords.
#[derive(Debug)]
pub struct Users {
    hashes: BTreeMap<String, String>,
    /// What the password of somebody unknown is compared with, so that it takes as long as of somebody known.
    decoy: String,
}

impl Users {
    /// None without any.
    ///
    /// # Errors
    /// For what is no hash.
    pub fn new(hashes: &BTreeMap<String, String>) -> anyhow::Result<Option<Self>> {
        let mut costliest = None;
        for (name, hash) in hashes {
            let parts: HashParts = hash
                .parse()
                .map_err(anyhow::Error::new)
                .with_context(|| format!("basic_auth_users: the password of {name:?} is no bcrypt hash"))?;
            costliest = costliest.max(Some((parts.get_cost(), hash)));
        }
        Ok(costliest.map(|(_, hash)| Self { hashes: hashes.clone(), decoy: hash.clone() }))
    }

    #[cfg(test)]
    pub fn names(&self) -> Vec<String> {
        self.hashes.keys().cloned().collect()
    }
}

/// Checks passwords. A check takes a while, by bcrypt's design: one at a time, on a thread that answers nobody, and
/// never twice for the same. Who has many to be checked waits for his own: of each network one is in the queue.
pub struct Guard {
    /// Keys what is remembered, which so is no use to who reads memory, nor comparing it to who measures time.
    secret: hmac::Key,
    known: Arc<Mutex<Known>>,
    turn: Arc<Semaphore>,
    /// By network.
    queues: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// Networks of which it is kept whether somebody waits, before those are forgotten of which nobody does.
const QUEUES: usize = 1000;

#[derive(Default)]
struct Known {
    good: HashSet<Tag>,
    bad: HashSet<Tag>,
}

type Tag = [u8; 32];

impl Guard {
    /// # Errors
    /// If the kernel has no randomness.
    pub fn new() -> anyhow::Result<Self> {
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("no randomness from the kernel"))?;
        let turn = Arc::new(Semaphore::new(1));
        Ok(Self { secret, known: Arc::default(), turn, queues: Mutex::default() })
    }

    /// Whether the credentials of a request from a network are a user's.
    pub async fn admits(&self, users: &Users, headers: &HeaderMap, from: IpAddr) -> bool {
        let Some((name, password)) = credentials(headers) else { return false };
        let known = users.hashes.get(&name);
        let hash = known.unwrap_or(&users.decoy);
        let tag = self.tag(&[name.as_bytes(), hash.as_bytes(), &password]);
        if let Some(remembered) = self.remembered(&tag) {
            return remembered;
        }
        let queue = self.queue(from);
        let Ok(_first) = queue.acquire().await else { return false };
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return false };
        // Another connection may have asked the same meanwhile.
        if let Some(remembered) = self.remembered(&tag) {
            return remembered;
        }
        let (hash, is_user, known) = (hash.clone(), known.is_some(), Arc::clone(&self.known));
        // Goes on, and is remembered, when the client has left meanwhile.
        let check = tokio::task::spawn_blocking(move || {
            let good = bcrypt::verify(&password, &hash).unwrap_or(false) && is_user;
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = if good { &mut known.good } else { &mut known.bad };
            if kept.len() >= REMEMBERED {
                kept.clear();
            }
            kept.insert(tag);
            drop(turn);
            good
        });
        check.await.unwrap_or(false)
    }

    /// What those of a network wait in, one after the other.
    fn queue(&self, from: IpAddr) -> Arc<Semaphore> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(&from).and_then(Weak::upgrade) {
            return queue;
        }
        if queues.len() >= QUEUES {
            queues.retain(|_, queue| queue.strong_count() > 0);
        }
        let queue = Arc::new(Semaphore::new(1));
        queues.insert(from, Arc::downgrade(&queue));
        queue
    }

    fn remembered(&self, tag: &Tag) -> Option<bool> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.good.contains(tag) { Some(true) } else { known.bad.contains(tag).then_some(false) }
    }

    /// Of parts with their lengths, so that no others give the same.
    fn tag(&self, parts: &[&[u8]]) -> Tag {
        let mut context = hmac::Context::with_key(&self.secret);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut tag = Tag::default();
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }
}

/// RFC 7617. The name as text: those of the file are.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let name = String::from_utf8(decoded.get(..colon)?.to_vec()).ok()?;
    Some((name, decoded.get(colon + 1..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, value.parse().expect("a value"))).collect()
    }

    fn basic(name: &str, password: &str) -> HeaderMap {
        headers(&[&format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))])
    }

    #[tokio::test]
    async fn who_is_let_in() {
        let hash = bcrypt::hash("s3cret:with colon", 4).expect("hash");
        let users = Users::new(&[("alice".to_owned(), hash)].into()).expect("valid").expect("some");
        let guard = Guard::new().expect("randomness");
        assert!(!guard.admits(&users, &HeaderMap::new(), HERE).await);
        // Twice: the second time it is remembered.
        for _ in 0..2 {
            assert!(guard.admits(&users, &basic("alice", "s3cret:with colon"), HERE).await);
            for (name, password) in
                [("alice", "s3cret"), ("alice", ""), ("", ""), ("bob", "s3cret:with colon"), ("alice\0", "x")]
            {
                assert!(!guard.admits(&users, &basic(name, password), HERE).await, "{name}:{password}");
            }
        }
        let good = basic("alice", "s3cret:with colon");
        let good = good[header::AUTHORIZATION].to_str().expect("text");
        let encoded = good.strip_prefix("Basic ").expect("basic");
        assert!(guard.admits(&users, &headers(&[&format!("bAsIc {encoded}")]), HERE).await);
        for wrong in [
            &[good, good][..],
            &[encoded],
            &["Basic"],
            &["Basic "],
            &["Basic ::::"],
            &["Basic YWxpY2U="],
            &["Basic //79"],
            &[&format!("Bearer {encoded}")],
        ] {
            assert!(!guard.admits(&users, &headers(wrong), HERE).await, "{wrong:?}");
        }
        // With another hash, nothing that is remembered counts.
        let other = bcrypt::hash("other", 4).expect("hash");
        let others = Users::new(&[("alice".to_owned(), other)].into()).expect("valid").expect("some");
        assert!(!guard.admits(&others, &basic("alice", "s3cret:with colon"), HERE).await);
    }

    /// Whoever tries passwords keeps nobody else waiting for more than the one that is checked.
    #[tokio::test]
    async fn guesses_from_one_network_are_checked_after_another_s() {
        let users = Users::new(&[("alice".to_owned(), bcrypt::hash("right", 8).expect("hash"))].into());
        let (users, guard) = (users.expect("valid").expect("some"), Guard::new().expect("randomness"));
        let done = Mutex::new(Vec::new());
        let ask = |password: String, from: [u8; 4]| {
            let (users, guard, done) = (&users, &guard, &done);
            async move {
                let admitted = guard.admits(users, &basic("alice", &password), from.into()).await;
                done.lock().expect("no panic").push(admitted);
            }
        };
        let guesses = futures_util::future::join_all((0..20).map(|n| ask(n.to_string(), [192, 0, 2, 1])));
        // In the order in which they are first polled: the guesses are there before.
        futures_util::future::join(guesses, ask("right".to_owned(), [192, 0, 2, 2])).await;
        let done = done.into_inner().expect("no panic");
        assert_eq!(done.len(), 21);
        let admitted = done.iter().position(|admitted| *admitted);
        assert!(admitted.is_some_and(|at| at <= 2), "{done:?}");
    }

    /// A scraper that does not wait for so long is let in the next time.
    #[tokio::test]
    async fn a_check_goes_on_without_its_client() {
        let users = Users::new(&[("alice".to_owned(), bcrypt::hash("right", 8).expect("hash"))].into());
        let (users, guard) = (users.expect("valid").expect("some"), Guard::new().expect("randomness"));
        let alice = basic("alice", "right");
        let left = tokio::time::timeout(Duration::from_millis(1), guard.admits(&users, &alice, HERE)).await;
        assert!(left.is_err(), "bcrypt takes longer");
        let _over = guard.turn.acquire().await.expect("the turn");
        assert_eq!(guard.known.lock().expect("no panic").good.len(), 1);
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let users = Users::new(&[("alice".to_owned(), bcrypt::hash("right", 4).expect("hash"))].into());
        let users = users.expect("valid").expect("some");
        let guard = Guard::new().expect("randomness");
        assert!(guard.admits(&users, &basic("alice", "right"), HERE).await);
        for n in 0..REMEMBERED + 10 {
            guard.known.lock().expect("no panic").bad.insert(guard.tag(&[&n.to_le_bytes()]));
        }
        assert!(!guard.admits(&users, &basic("alice", "wrong"), HERE).await);
        let known = guard.known.lock().expect("no panic");
        assert_eq!((known.good.len(), known.bad.len()), (1, 1), "the good one is not pushed out by bad ones");
    }
}
