//! The coordinator of a consumer group: assigns partitions to members, and keeps the group's
//! committed offsets.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::log::Assignment;

/// The member that owns a partition.
#[derive(Debug, Clone, Copy)]
struct Owner {
    member_id: u64,
    /// [`Group::next_change`] has reported the assignment to the member.
    is_notified: bool,
    /// When the group asked the member to release the partition. `None` if it has not asked.
    revoke_requested_at: Option<Instant>,
}

/// What a group stores for one member.
#[derive(Debug, Default)]
struct Member {
    /// Offsets that the member stored and that are not committed yet, by partition.
    stored_offsets: BTreeMap<usize, i64>,
    /// Revoked partitions that [`Group::next_change`] has not reported to the member yet.
    unreported_revocations: Vec<i32>,
}

/// The committed offset and the owner of one partition.
#[derive(Debug)]
struct PartitionState {
    /// The offset below which the group has finished every record. `None` if the group has never
    /// committed an offset.
    committed_offset: Option<i64>,
    /// The committed offset that was last written to the store. `None` if none was written or the
    /// last write failed.
    persisted_offset: Option<i64>,
    owner: Option<Owner>,
}

/// The state of a group, behind its lock.
#[derive(Debug)]
struct GroupState {
    partitions: Vec<PartitionState>,
    members: BTreeMap<u64, Member>,
    next_member_id: u64,
}

/// A change of a member's assignment.
#[derive(Debug)]
pub(super) enum RebalanceChange {
    Revoked(Vec<i32>),
    Assigned(Vec<Assignment>),
}

/// The coordinator of one group on one topic: assigns partitions to members, and commits the
/// offsets that the members store.
#[derive(Debug)]
pub(super) struct Group {
    state: Mutex<GroupState>,
    /// Incremented whenever partitions are assigned, revoked or requested from a member. A consumer
    /// that has seen the current version need not call [`Group::next_change`].
    version: AtomicU64,
}

impl Group {
    /// Creates a group without members. `committed_offsets` has one entry for each partition.
    pub(super) fn new(committed_offsets: Vec<Option<i64>>) -> Self {
        let partitions = committed_offsets
            .into_iter()
            .map(|committed_offset| PartitionState {
                committed_offset,
                persisted_offset: committed_offset,
                owner: None,
            })
            .collect();
        Self {
            state: Mutex::new(GroupState {
                partitions,
                members: BTreeMap::new(),
                next_member_id: 0,
            }),
            version: AtomicU64::new(1),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn increment_version(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Adds a member and returns its id.
    pub(super) fn join(&self) -> u64 {
        let mut state = self.state.lock();
        let member_id = state.next_member_id;
        state.next_member_id += 1;
        state.members.insert(member_id, Member::default());
        state.rebalance();
        drop(state);
        self.increment_version();
        member_id
    }

    /// Removes a member. With `commit` the offsets that the member stored are committed; otherwise
    /// they are discarded.
    pub(super) fn leave(&self, member_id: u64, commit: bool) {
        let mut state = self.state.lock();
        if !commit && let Some(member) = state.members.get_mut(&member_id) {
            member.stored_offsets.clear();
        }
        for partition in state.owned_by(member_id) {
            state.release(partition);
        }
        state.members.remove(&member_id);
        state.rebalance();
        drop(state);
        self.increment_version();
    }

    /// The next change of the member's assignment that was not reported to the member yet. `None`
    /// if there is none. The call first releases the partitions that the group has requested from
    /// the member.
    pub(super) fn next_change(&self, member_id: u64) -> Option<RebalanceChange> {
        let mut state = self.state.lock();
        let requested: Vec<usize> = state
            .owned_by(member_id)
            .into_iter()
            .filter(|p| {
                let owner = state.partitions[*p].owner;
                owner.is_some_and(|owner| owner.revoke_requested_at.is_some())
            })
            .collect();
        if !requested.is_empty() {
            for partition in requested {
                state.release(partition);
            }
            state.rebalance();
            self.increment_version();
        }
        let revoked =
            std::mem::take(&mut state.members.get_mut(&member_id)?.unreported_revocations);
        if !revoked.is_empty() {
            return Some(RebalanceChange::Revoked(revoked));
        }
        let mut assigned = Vec::new();
        for (index, partition) in state.partitions.iter_mut().enumerate() {
            if let Some(owner) = &mut partition.owner
                && owner.member_id == member_id
                && !owner.is_notified
            {
                owner.is_notified = true;
                assigned.push(Assignment {
                    partition: index as i32,
                    committed_offset: partition.committed_offset,
                });
            }
        }
        (!assigned.is_empty()).then_some(RebalanceChange::Assigned(assigned))
    }

    /// Revokes the partitions that the group requested from their owners more than
    /// `session_timeout` ago and that are not released yet. Returns whether there were any.
    pub(super) fn revoke_expired(&self, session_timeout: Duration) -> bool {
        let mut state = self.state.lock();
        let is_expired = |owner: Owner| {
            owner
                .revoke_requested_at
                .is_some_and(|since| since.elapsed() > session_timeout)
        };
        let expired: Vec<usize> = (0..state.partitions.len())
            .filter(|p| state.partitions[*p].owner.is_some_and(is_expired))
            .collect();
        if expired.is_empty() {
            return false;
        }
        for partition in expired {
            state.release(partition);
        }
        state.rebalance();
        drop(state);
        self.increment_version();
        true
    }

    /// Stores the offset below which the member has finished every record, until it is committed.
    /// Has no effect if the member does not own the partition.
    pub(super) fn store_offset(&self, member_id: u64, partition: i32, next_offset: i64) {
        let mut state = self.state.lock();
        let partition = partition as usize;
        let owner = state.partitions.get(partition).and_then(|p| p.owner);
        if owner.is_none_or(|owner| owner.member_id != member_id || !owner.is_notified) {
            return;
        }
        if let Some(member) = state.members.get_mut(&member_id) {
            let stored = member
                .stored_offsets
                .entry(partition)
                .or_insert(next_offset);
            *stored = next_offset.max(*stored);
        }
    }

    /// Commits the offsets that members stored. Returns each partition whose committed offset has
    /// to be written to the store, with that offset. It counts as persisted from now on; if the
    /// write fails, the caller must call [`Group::mark_unpersisted`].
    pub(super) fn commit_stored(&self) -> Vec<(i32, i64)> {
        let mut state = self.state.lock();
        let GroupState {
            partitions,
            members,
            ..
        } = &mut *state;
        for member in members.values_mut() {
            for (partition, next_offset) in std::mem::take(&mut member.stored_offsets) {
                partitions[partition].commit(next_offset);
            }
        }
        let mut unpersisted = Vec::new();
        for (index, partition) in partitions.iter_mut().enumerate() {
            if partition.committed_offset != partition.persisted_offset
                && let Some(offset) = partition.committed_offset
            {
                partition.persisted_offset = partition.committed_offset;
                unpersisted.push((index as i32, offset));
            }
        }
        unpersisted
    }

    /// Notes that the partition's committed offset could not be written to the store, so that the
    /// next [`Group::commit_stored`] returns it again.
    pub(super) fn mark_unpersisted(&self, partition: i32) {
        self.state.lock().partitions[partition as usize].persisted_offset = None;
    }

    /// The offset below which the group needs no record of this partition, even after a restart.
    /// `None` if the group has no members and has never committed, so that it needs no record at
    /// all.
    pub(super) fn persisted_offset(&self, partition: i32) -> Option<i64> {
        let state = self.state.lock();
        let is_in_use = !state.members.is_empty()
            || state
                .partitions
                .iter()
                .any(|p| p.persisted_offset.is_some());
        is_in_use.then(|| {
            state.partitions[partition as usize]
                .persisted_offset
                .unwrap_or(0)
        })
    }
}

impl PartitionState {
    /// Commits an offset, unless a higher one is committed: after a seek, a member finishes records
    /// again that were finished before.
    fn commit(&mut self, next_offset: i64) {
        let committed = self
            .committed_offset
            .map_or(next_offset, |c| c.max(next_offset));
        self.committed_offset = Some(committed);
    }
}

impl GroupState {
    fn owned_by(&self, member_id: u64) -> Vec<usize> {
        (0..self.partitions.len())
            .filter(|p| {
                self.partitions[*p]
                    .owner
                    .is_some_and(|o| o.member_id == member_id)
            })
            .collect()
    }

    /// Revokes a partition from its owner, and commits the offset that the owner stored for it.
    fn release(&mut self, partition: usize) {
        let state = &mut self.partitions[partition];
        let Some(owner) = state.owner.take() else {
            return;
        };
        if let Some(member) = self.members.get_mut(&owner.member_id) {
            if let Some(next_offset) = member.stored_offsets.remove(&partition) {
                state.commit(next_offset);
            }
            if owner.is_notified {
                member.unreported_revocations.push(partition as i32);
            }
        }
    }

    /// Assigns free partitions to members, and requests from each member the partitions above its
    /// share. As few partitions as possible change their owner.
    fn rebalance(&mut self) {
        if self.members.is_empty() {
            return;
        }
        let mut members: Vec<(u64, Vec<usize>)> = self
            .members
            .keys()
            .map(|member_id| (*member_id, self.owned_by(*member_id)))
            .collect();
        // Members that own the most partitions get the larger shares.
        members.sort_by_key(|(_, owned)| std::cmp::Reverse(owned.len()));
        let share = self.partitions.len() / members.len();
        let larger_shares = self.partitions.len() % members.len();
        for (index, (member_id, owned)) in members.iter_mut().enumerate() {
            let quota = share + usize::from(index < larger_shares);
            // Partitions whose assignment was not reported yet sort last, so they are the first to
            // exceed the quota. They are revoked at once, because the member does not know them.
            owned.sort_by_key(|p| {
                let owner = self.partitions[*p].owner;
                owner.is_some_and(|owner| !owner.is_notified)
            });
            for (nth, partition) in owned.iter().enumerate() {
                let is_above_quota = nth >= quota;
                let owner = &mut self.partitions[*partition].owner;
                if is_above_quota {
                    owner.take_if(|owner| !owner.is_notified);
                }
                if let Some(owner) = owner {
                    owner.revoke_requested_at = is_above_quota
                        .then(|| owner.revoke_requested_at.unwrap_or_else(Instant::now));
                }
            }
            let mut missing = quota.saturating_sub(owned.len());
            for partition in &mut self.partitions {
                if missing > 0 && partition.owner.is_none() {
                    partition.owner = Some(Owner {
                        member_id: *member_id,
                        is_notified: false,
                        revoke_requested_at: None,
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

    fn next_assigned(group: &Group, member_id: u64) -> Vec<i32> {
        match group.next_change(member_id) {
            Some(RebalanceChange::Assigned(new)) => new.iter().map(|a| a.partition).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn next_revoked(group: &Group, member_id: u64) -> Vec<i32> {
        match group.next_change(member_id) {
            Some(RebalanceChange::Revoked(lost)) => lost,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn partition_is_reassigned_only_after_its_owner_released_it() {
        let group = Group::new(vec![None; 4]);
        let a = group.join();
        assert_eq!(next_assigned(&group, a), [0, 1, 2, 3]);
        let b = group.join();
        assert!(
            group.next_change(b).is_none(),
            "member a has not released a partition"
        );
        group.store_offset(a, 3, 7);
        assert_eq!(next_revoked(&group, a), [2, 3]);
        group.store_offset(a, 3, 9);
        assert_eq!(next_assigned(&group, b), [2, 3]);
        assert_eq!(
            group.commit_stored(),
            [(3, 7)],
            "offset 7 was stored before the revocation, offset 9 after it"
        );
    }

    #[test]
    fn member_that_stopped_polling_loses_requested_partitions_and_is_fenced() {
        let group = Group::new(vec![None; 2]);
        let a = group.join();
        assert_eq!(next_assigned(&group, a), [0, 1]);
        let b = group.join();
        assert!(
            !group.revoke_expired(Duration::from_secs(60)),
            "no request is that old"
        );
        while !group.revoke_expired(Duration::ZERO) {}
        assert_eq!(next_assigned(&group, b), [1]);
        group.store_offset(a, 1, 5);
        assert!(group.commit_stored().is_empty());
        assert_eq!(next_revoked(&group, a), [1]);
    }

    #[test]
    fn member_that_joins_before_the_first_was_notified_need_not_wait() {
        let group = Group::new(vec![None; 4]);
        let (a, b) = (group.join(), group.join());
        assert_eq!(next_assigned(&group, b).len(), 2);
        assert_eq!(next_assigned(&group, a).len(), 2);
    }

    #[test]
    fn member_without_a_partition_takes_over_when_another_leaves() {
        let group = Group::new(vec![None; 1]);
        let (a, b) = (group.join(), group.join());
        assert_eq!(next_assigned(&group, a), [0]);
        assert!(group.next_change(b).is_none());
        group.store_offset(a, 0, 3);
        group.leave(a, false);
        assert_eq!(next_assigned(&group, b), [0]);
        assert!(
            group.commit_stored().is_empty(),
            "member a left without committing"
        );
    }

    #[test]
    fn revocation_request_is_withdrawn_when_the_other_member_leaves() {
        let group = Group::new(vec![None; 2]);
        let a = group.join();
        assert_eq!(next_assigned(&group, a), [0, 1]);
        let b = group.join();
        group.leave(b, true);
        assert!(group.next_change(a).is_none());
    }
}
