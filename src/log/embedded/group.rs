//! A consumer group: who reads which partition, and what is finished.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::log::Assignment;

#[derive(Debug, Clone, Copy)]
struct Owner {
    member: u64,
    /// The member has been told.
    told: bool,
    /// Since when it is asked to let go.
    revoking: Option<Instant>,
}

#[derive(Debug, Default)]
struct Member {
    /// What it finished and nobody committed yet, by partition.
    stored: BTreeMap<usize, i64>,
    /// Taken from it, and it has not been told.
    lost: Vec<i32>,
}

#[derive(Debug)]
struct Slot {
    committed: Option<i64>,
    /// What of it is in the store.
    written: Option<i64>,
    owner: Option<Owner>,
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    members: BTreeMap<u64, Member>,
    next_member: u64,
}

/// What a member is told.
#[derive(Debug)]
pub(super) enum Change {
    Revoked(Vec<i32>),
    Assigned(Vec<Assignment>),
}

#[derive(Debug)]
pub(super) struct Group {
    state: Mutex<State>,
    /// Grows with every change that a member may have to be told.
    epoch: AtomicU64,
}

impl Group {
    /// `committed` has an entry for each partition.
    pub(super) fn new(committed: Vec<Option<i64>>) -> Self {
        let slots = committed
            .into_iter()
            .map(|committed| Slot {
                committed,
                written: committed,
                owner: None,
            })
            .collect();
        Self {
            state: Mutex::new(State {
                slots,
                members: BTreeMap::new(),
                next_member: 0,
            }),
            epoch: AtomicU64::new(1),
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// A new member's number.
    pub(super) fn join(&self) -> u64 {
        let mut state = self.state.lock();
        let member = state.next_member;
        state.next_member += 1;
        state.members.insert(member, Member::default());
        state.share();
        drop(state);
        self.changed();
        member
    }

    /// Goes; with `commit` what it finished counts.
    pub(super) fn leave(&self, member: u64, commit: bool) {
        let mut state = self.state.lock();
        if !commit && let Some(member) = state.members.get_mut(&member) {
            member.stored.clear();
        }
        for partition in state.owned(member) {
            state.release(partition);
        }
        state.members.remove(&member);
        state.share();
        drop(state);
        self.changed();
    }

    /// The next thing that a member has to know. By this call it lets go of what it is asked for.
    pub(super) fn change(&self, member: u64) -> Option<Change> {
        let mut state = self.state.lock();
        let asked: Vec<usize> = state
            .owned(member)
            .into_iter()
            .filter(|p| state.slots[*p].owner.is_some_and(|o| o.revoking.is_some()))
            .collect();
        if !asked.is_empty() {
            for partition in asked {
                state.release(partition);
            }
            state.share();
            self.changed();
        }
        let lost = std::mem::take(&mut state.members.get_mut(&member)?.lost);
        if !lost.is_empty() {
            return Some(Change::Revoked(lost));
        }
        let mut new = Vec::new();
        for (partition, slot) in state.slots.iter_mut().enumerate() {
            if let Some(owner) = &mut slot.owner
                && owner.member == member
                && !owner.told
            {
                owner.told = true;
                new.push(Assignment {
                    partition: partition as i32,
                    committed: slot.committed,
                });
            }
        }
        (!new.is_empty()).then_some(Change::Assigned(new))
    }

    /// Takes partitions from members that were asked longer ago than `session` and don't let go of
    /// them. True where it did.
    pub(super) fn expire(&self, session: Duration) -> bool {
        let mut state = self.state.lock();
        let overdue: Vec<usize> = (0..state.slots.len())
            .filter(|p| {
                let owner = state.slots[*p].owner;
                owner.is_some_and(|o| o.revoking.is_some_and(|since| since.elapsed() > session))
            })
            .collect();
        if overdue.is_empty() {
            return false;
        }
        for partition in overdue {
            state.release(partition);
        }
        state.share();
        drop(state);
        self.changed();
        true
    }

    /// Notes that everything below `next` is finished, if the partition is the member's.
    pub(super) fn store(&self, member: u64, partition: i32, next: i64) {
        let mut state = self.state.lock();
        let partition = partition as usize;
        let owner = state.slots.get(partition).and_then(|slot| slot.owner);
        if owner.is_none_or(|owner| owner.member != member || !owner.told) {
            return;
        }
        if let Some(member) = state.members.get_mut(&member) {
            let stored = member.stored.entry(partition).or_insert(next);
            *stored = next.max(*stored);
        }
    }

    /// Commits what members finished, and gives what has to be written.
    pub(super) fn take_finished(&self) -> Vec<(i32, i64)> {
        let mut state = self.state.lock();
        let State { slots, members, .. } = &mut *state;
        for member in members.values_mut() {
            for (partition, next) in std::mem::take(&mut member.stored) {
                slots[partition].commit(next);
            }
        }
        let mut finished = Vec::new();
        for (partition, slot) in slots.iter_mut().enumerate() {
            if slot.committed != slot.written
                && let Some(offset) = slot.committed
            {
                slot.written = slot.committed;
                finished.push((partition as i32, offset));
            }
        }
        finished
    }

    /// Writing failed: it has to be done again.
    pub(super) fn not_written(&self, partition: i32) {
        self.state.lock().slots[partition as usize].written = None;
    }

    /// Everything below was finished by this group, also if this process dies. `None` where it
    /// has neither members nor ever committed anything: nobody will miss a record.
    pub(super) fn written(&self, partition: i32) -> Option<i64> {
        let state = self.state.lock();
        let lives = !state.members.is_empty() || state.slots.iter().any(|s| s.written.is_some());
        lives.then(|| state.slots[partition as usize].written.unwrap_or(0))
    }
}

impl Slot {
    fn commit(&mut self, next: i64) {
        // A replay after a seek finishes again what was finished.
        self.committed = Some(self.committed.map_or(next, |committed| committed.max(next)));
    }
}

impl State {
    fn owned(&self, member: u64) -> Vec<usize> {
        (0..self.slots.len())
            .filter(|p| self.slots[*p].owner.is_some_and(|o| o.member == member))
            .collect()
    }

    /// Commits what its owner finished of a partition and takes it away.
    fn release(&mut self, partition: usize) {
        let slot = &mut self.slots[partition];
        let Some(owner) = slot.owner.take() else {
            return;
        };
        if let Some(member) = self.members.get_mut(&owner.member) {
            if let Some(next) = member.stored.remove(&partition) {
                slot.commit(next);
            }
            if owner.told {
                member.lost.push(partition as i32);
            }
        }
    }

    /// Gives free partitions away and asks for those that are somebody else's share: as few as
    /// possible change hands.
    fn share(&mut self) {
        if self.members.is_empty() {
            return;
        }
        let mut members: Vec<(u64, Vec<usize>)> = self
            .members
            .keys()
            .map(|member| (*member, self.owned(*member)))
            .collect();
        // Who has most keeps the larger shares.
        members.sort_by_key(|(_, owned)| std::cmp::Reverse(owned.len()));
        let (share, larger) = (
            self.slots.len() / members.len(),
            self.slots.len() % members.len(),
        );
        for (index, (member, owned)) in members.iter_mut().enumerate() {
            let quota = share + usize::from(index < larger);
            // What its owner has not heard of goes first, and without being asked for.
            owned.sort_by_key(|p| self.slots[*p].owner.is_some_and(|owner| !owner.told));
            for (nth, partition) in owned.iter().enumerate() {
                if nth >= quota {
                    self.slots[*partition].owner.take_if(|owner| !owner.told);
                }
                if let Some(owner) = &mut self.slots[*partition].owner {
                    owner.revoking =
                        (nth >= quota).then(|| owner.revoking.unwrap_or_else(Instant::now));
                }
            }
            let mut missing = quota.saturating_sub(owned.len());
            for slot in &mut self.slots {
                if missing > 0 && slot.owner.is_none() {
                    slot.owner = Some(Owner {
                        member: *member,
                        told: false,
                        revoking: None,
                    });
                    missing -= 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(group: &Group, member: u64) -> Vec<i32> {
        match group.change(member) {
            Some(Change::Assigned(new)) => new.iter().map(|a| a.partition).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn revoked(group: &Group, member: u64) -> Vec<i32> {
        match group.change(member) {
            Some(Change::Revoked(lost)) => lost,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_partition_changes_hands_only_when_its_owner_has_let_go() {
        let group = Group::new(vec![None; 4]);
        let a = group.join();
        assert_eq!(assigned(&group, a), [0, 1, 2, 3]);
        let b = group.join();
        assert!(group.change(b).is_none(), "they are still a's");
        group.store(a, 3, 7);
        assert_eq!(revoked(&group, a), [2, 3]);
        group.store(a, 3, 9);
        assert_eq!(assigned(&group, b), [2, 3]);
        assert_eq!(
            group.take_finished(),
            [(3, 7)],
            "finished before, not after"
        );
    }

    #[test]
    fn a_member_that_stopped_looking_loses_what_others_wait_for_and_is_fenced() {
        let group = Group::new(vec![None; 2]);
        let a = group.join();
        assert_eq!(assigned(&group, a), [0, 1]);
        let b = group.join();
        assert!(!group.expire(Duration::from_secs(60)), "too early");
        while !group.expire(Duration::ZERO) {}
        assert_eq!(assigned(&group, b), [1]);
        group.store(a, 1, 5);
        assert!(group.take_finished().is_empty());
        assert_eq!(revoked(&group, a), [1]);
    }

    #[test]
    fn who_comes_before_the_first_was_told_need_not_wait_for_it() {
        let group = Group::new(vec![None; 4]);
        let (a, b) = (group.join(), group.join());
        assert_eq!(assigned(&group, b).len(), 2);
        assert_eq!(assigned(&group, a).len(), 2);
    }

    #[test]
    fn more_members_than_partitions_wait_for_their_turn() {
        let group = Group::new(vec![None; 1]);
        let (a, b) = (group.join(), group.join());
        assert_eq!(assigned(&group, a), [0]);
        assert!(group.change(b).is_none());
        group.store(a, 0, 3);
        group.leave(a, false);
        assert_eq!(assigned(&group, b), [0]);
        assert!(
            group.take_finished().is_empty(),
            "it left without committing"
        );
    }

    #[test]
    fn a_share_that_is_no_longer_needed_stays_where_it_is() {
        let group = Group::new(vec![None; 2]);
        let a = group.join();
        assert_eq!(assigned(&group, a), [0, 1]);
        let b = group.join();
        group.leave(b, true);
        assert!(group.change(a).is_none());
    }
}
