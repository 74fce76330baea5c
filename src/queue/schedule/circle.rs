//! Tenants in a circle: each is served as often in a round as its weight says.

use std::collections::HashMap;

use crate::job::name::Name;

/// Tenants that have something waiting, each with its turn. Who was served goes to the end; who comes
/// anew begins there. So nobody is passed by more than once a round, and turns only ever grow.
#[derive(Debug, Default)]
pub(super) struct Circle {
    members: HashMap<Name, Member>,
}

#[derive(Debug)]
struct Member {
    turn: u64,
    /// How often it is served before the next tenant's turn comes.
    left: u32,
    /// Its lanes in which something waits.
    lanes: usize,
}

impl Circle {
    /// Something waits in another lane of the tenant. `end` is the turn at the end of the circle.
    pub(super) fn join(&mut self, tenant: &Name, weight: u32, end: u64) {
        let member = self.members.entry(tenant.clone()).or_insert(Member {
            turn: end,
            left: weight,
            lanes: 0,
        });
        member.lanes += 1;
    }

    /// Nothing waits any more in one lane of the tenant.
    pub(super) fn leave(&mut self, tenant: &Name) {
        if let Some(member) = self.members.get_mut(tenant) {
            member.lanes -= 1;
            if member.lanes == 0 {
                self.members.remove(tenant);
            }
        }
    }

    /// One job of the tenant was served.
    pub(super) fn serve(&mut self, tenant: &Name, weight: u32, end: u64) {
        if let Some(member) = self.members.get_mut(tenant) {
            member.left = member.left.min(weight).saturating_sub(1);
            if member.left == 0 {
                member.turn = end;
                member.left = weight;
            }
        }
    }

    /// When the tenant is next, beside the others.
    pub(super) fn turn_of(&self, tenant: &Name) -> Option<u64> {
        self.members.get(tenant).map(|member| member.turn)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}
