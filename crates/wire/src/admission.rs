//! How many connections a port takes: in all, from one address, and new ones in a second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{CONNECTION_BURST, CONNECTIONS_A_SECOND, MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ONE};

/// Addresses that are remembered before those that have no connection are forgotten.
const MAX_REMEMBERED: usize = 2 * MAX_CONNECTIONS;
/// Refusals are said this often.
const SAY: Duration = Duration::from_secs(10);

/// The count of one port.
#[derive(Default)]
pub(crate) struct Admission(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    open: usize,
    of: HashMap<IpAddr, Caller>,
    refused: u64,
    said: Option<Instant>,
}

struct Caller {
    open: usize,
    /// New connections that it may make at `at`.
    credit: f64,
    at: Instant,
}

/// A place among the connections of a port, until it is dropped.
pub(crate) struct Place {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// A place for a connection from `address`, if there is one for it.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Place> {
        let (address, now) = (network(address), Instant::now());
        let mut counts = lock(&self.0);
        let refusal = counts.refusal(address, now);
        if let Some(reason) = refusal {
            counts.refused += 1;
            if counts.said.is_none_or(|at| now - at >= SAY) {
                tracing::warn!(%address, reason, refused = counts.refused, "connections are refused");
                (counts.said, counts.refused) = (Some(now), 0);
            }
            return None;
        }
        counts.open += 1;
        if let Some(caller) = counts.of.get_mut(&address) {
            caller.open += 1;
        }
        Some(Place { counts: self.0.clone(), address })
    }
}

impl Counts {
    fn refusal(&mut self, address: IpAddr, now: Instant) -> Option<&'static str> {
        if self.open >= MAX_CONNECTIONS {
            return Some("the port has all the connections that it takes");
        }
        if self.of.len() >= MAX_REMEMBERED {
            self.of.retain(|_, caller| caller.open > 0);
        }
        let full = f64::from(CONNECTION_BURST);
        let caller = self.of.entry(address).or_insert(Caller { open: 0, credit: full, at: now });
        let earned = now.duration_since(caller.at).as_secs_f64() * f64::from(CONNECTIONS_A_SECOND);
        (caller.credit, caller.at) = ((caller.credit + earned).min(full), now);
        if caller.open >= MAX_CONNECTIONS_OF_ONE {
            return Some("one address has all the connections that it may have");
        }
        if caller.credit < 1.0 {
            return Some("one address connects too often");
        }
        caller.credit -= 1.0;
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts.open -= 1;
        if let Some(caller) = counts.of.get_mut(&self.address) {
            caller.open -= 1;
        }
    }
}

/// Whom an address stands for: itself, or its IPv6 network, of which one client has all the addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_may_not_take_every_place_and_gives_back_what_it_leaves() {
        let admission = Admission::default();
        let one = address("192.0.2.1");
        let mut places: Vec<_> = std::iter::from_fn(|| admission.enter(one)).collect();
        assert_eq!(places.len(), MAX_CONNECTIONS_OF_ONE);
        assert!(admission.enter(address("192.0.2.2")).is_some());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(admission.enter(one).is_none());
        places.pop();
        assert!(admission.enter(one).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_connects_too_often_waits_and_others_do_not() {
        let admission = Admission::default();
        let one = address("2001:db8::1");
        let made = |admission: &Admission| (0..2 * CONNECTION_BURST).filter(|_| admission.enter(one).is_some()).count();
        assert_eq!(made(&admission), CONNECTION_BURST as usize);
        // Another address of the same network is the same client.
        assert!(admission.enter(address("2001:db8::2")).is_none());
        assert!(admission.enter(address("2001:db8:0:1::1")).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(made(&admission), CONNECTIONS_A_SECOND as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_takes_so_many_connections_and_forgets_who_has_none() {
        let admission = Admission::default();
        let of = |i: u32| IpAddr::V4((0x0a00_0000 + i).into());
        let places: Vec<_> = (0..).map_while(|i| admission.enter(of(i))).collect();
        assert_eq!(places.len(), MAX_CONNECTIONS);
        drop(places);
        (0..3 * MAX_REMEMBERED as u32).for_each(|i| drop(admission.enter(of(i))));
        assert!(lock(&admission.0).of.len() <= MAX_REMEMBERED);
        assert_eq!(lock(&admission.0).open, 0);
    }
}
