//! Things in the order of ranks that only ever grow.
//!
//! Whoever is served gets a higher rank everywhere at once. To move it everywhere would cost a step for
//! each place where it stands; here it is moved where it is met at the front, and nowhere else.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// Lower is served sooner: the turn of a tenant, and of the lane that its turn is for.
pub(super) type Rank = (u64, u64);

#[cfg(test)]
thread_local! {
    /// How many things were looked at: what a claim costs, whatever the clock says.
    pub(super) static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Each thing once. Where it stands may be too early, never too late.
#[derive(Debug)]
pub(super) struct Order<K> {
    stands: HashMap<K, Rank>,
    order: BTreeSet<(Rank, K)>,
}

impl<K> Default for Order<K> {
    fn default() -> Self {
        Self {
            stands: HashMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl<K: Clone + Ord + Hash> Order<K> {
    /// Puts a thing where it belongs, wherever it stood.
    pub(super) fn put(&mut self, key: &K, rank: Rank) {
        if let Some(before) = self.stands.insert(key.clone(), rank) {
            if before == rank {
                return;
            }
            self.order.remove(&(before, key.clone()));
        }
        self.order.insert((rank, key.clone()));
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some(rank) = self.stands.remove(key) {
            self.order.remove(&(rank, key.clone()));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The first thing, and its rank. `rank_of` says where a thing belongs now, or nowhere.
    pub(super) fn first(
        &mut self,
        mut rank_of: impl FnMut(&K) -> Option<Rank>,
    ) -> Option<(Rank, K)> {
        loop {
            #[cfg(test)]
            LOOKS.with(|looks| looks.set(looks.get() + 1));
            let (stood, key) = self.order.first()?.clone();
            match rank_of(&key) {
                Some(rank) if rank <= stood => return Some((stood, key)),
                Some(rank) => self.put(&key, rank),
                None => self.remove(&key),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_moved_behind_is_met_where_it_belongs_and_what_has_gone_is_not_met() {
        let mut order = Order::default();
        for (key, turn) in [("a", 1), ("b", 2), ("c", 3)] {
            order.put(&key, (turn, 0));
        }
        let now = |key: &&str| match *key {
            "a" => Some((4, 0)),
            "b" => None,
            _ => Some((3, 0)),
        };
        assert_eq!(order.first(now), Some(((3, 0), "c")));
        order.remove(&"c");
        assert_eq!(order.first(now), Some(((4, 0), "a")));
        order.remove(&"a");
        assert_eq!(order.first(now), None);
        assert!(order.is_empty() && order.stands.is_empty());
    }
}
