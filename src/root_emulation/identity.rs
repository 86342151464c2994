//! The ids that a process believes to have, and what the calls of credentials(7) make of them.
//!
//! The kernel's own ids of all processes stay 0. Only ids are emulated: what an emulated user may read or write is what
//! root may.

use std::collections::HashMap;

/// The four ids of a process, of users or of groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Ids {
    pub real: u32,
    pub effective: u32,
    pub saved: u32,
    pub filesystem: u32,
}

/// Who a process is; root by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub user: Ids,
    pub group: Ids,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// `PR_SET_KEEPCAPS`: whether giving up root leaves the right to change groups.
    pub keeps_capabilities: bool,
    /// Whether it did.
    pub retains: bool,
}

/// What a call asks of one kind of ids; `None` keeps an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// `setuid`, `setgid`
    Set(u32),
    /// `setreuid`, `setregid`
    RealEffective(Option<u32>, Option<u32>),
    /// `setresuid`, `setresgid`
    All(Option<u32>, Option<u32>, Option<u32>),
    /// `setfsuid`, `setfsgid`
    Filesystem(u32),
}

/// The call asks for an id that the process has no right to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPermitted;

impl Ids {
    fn everywhere(id: u32) -> Self {
        Self { real: id, effective: id, saved: id, filesystem: id }
    }

    /// The ids after the call; root may take any.
    fn changed(self, change: Change, root: bool) -> Result<Self, NotPermitted> {
        let Self { real, effective, saved, filesystem } = self;
        let allow = |id: Option<u32>, own: &[u32]| match id {
            Some(id) if !root && !own.contains(&id) => Err(NotPermitted),
            _ => Ok(()),
        };
        match change {
            Change::Set(id) if root => Ok(Self::everywhere(id)),
            Change::Set(id) => {
                allow(Some(id), &[real, saved])?;
                Ok(Self { effective: id, filesystem: id, ..self })
            }
            Change::RealEffective(new_real, new_effective) => {
                allow(new_real, &[real, effective])?;
                allow(new_effective, &[real, effective, saved])?;
                let effective = new_effective.unwrap_or(effective);
                let saves = new_real.is_some() || new_effective.is_some_and(|id| id != real);
                let saved = if saves { effective } else { saved };
                Ok(Self { real: new_real.unwrap_or(real), effective, saved, filesystem: effective })
            }
            Change::All(new_real, new_effective, new_saved) => {
                for id in [new_real, new_effective, new_saved] {
                    allow(id, &[real, effective, saved])?;
                }
                let effective = new_effective.unwrap_or(effective);
                let (real, saved) = (new_real.unwrap_or(real), new_saved.unwrap_or(saved));
                Ok(Self { real, effective, saved, filesystem: effective })
            }
            // This call never fails: it leaves the id as it is.
            Change::Filesystem(id) if root || [real, effective, saved, filesystem].contains(&id) => {
                Ok(Self { filesystem: id, ..self })
            }
            Change::Filesystem(_) => Ok(self),
        }
    }
}

impl Identity {
    /// Whether the process may change ids as it likes.
    pub(super) fn is_root(&self) -> bool {
        self.user.effective == 0
    }

    /// Whose the files are that the process makes.
    pub(super) fn makes_files_of_root(&self) -> bool {
        self.user.filesystem == 0 && self.group.filesystem == 0
    }

    /// Whether the process may change groups as it likes.
    pub(super) fn may_change_groups(&self) -> bool {
        self.is_root() || self.retains
    }

    /// The identity after a call that changes user ids.
    pub(super) fn with_user(mut self, change: Change) -> Result<Self, NotPermitted> {
        let was_root = self.is_root();
        self.user = self.user.changed(change, was_root)?;
        self.retains = !self.is_root() && (self.retains || (was_root && self.keeps_capabilities));
        Ok(self)
    }

    /// The identity after a call that changes group ids.
    pub(super) fn with_group(mut self, change: Change) -> Result<Self, NotPermitted> {
        self.group = self.group.changed(change, self.may_change_groups())?;
        Ok(self)
    }

    pub(super) fn in_group(&self, group: u32) -> bool {
        self.group.filesystem == group || self.groups.contains(&group)
    }
}

/// Identities by number. A process carries the number of its own in a place that its children inherit, since nothing
/// tells the supervisor that a process was forked.
#[derive(Debug, Default)]
pub(super) struct Identities {
    known: Vec<Identity>,
    numbers: HashMap<Identity, u32>,
}

/// Marks the numbers, so that a limit that somebody really set is not taken for one.
const MARK: u64 = 0x51f0_0000_0000_0000;
const MARK_BITS: u64 = 0xffff_0000_0000_0000;

impl Identities {
    /// The identity that `carried` stands for; root for any other number.
    pub(super) fn of(&self, carried: u64) -> Identity {
        if carried & MARK_BITS != MARK {
            return Identity::default();
        }
        let number = usize::try_from(carried & !MARK_BITS).ok();
        number.and_then(|number| self.known.get(number)).cloned().unwrap_or_default()
    }

    /// The number to carry for `identity`; `None` if there are too many.
    pub(super) fn number_of(&mut self, identity: Identity) -> Option<u64> {
        let number = match self.numbers.get(&identity) {
            Some(&number) => number,
            None => {
                // Each lists at most 65536 groups; programs that change ids without end are stopped somewhere.
                let number = u32::try_from(self.known.len()).ok().filter(|&number| number < 1 << 16)?;
                self.known.push(identity.clone());
                self.numbers.insert(identity, number);
                number
            }
        };
        Some(MARK | u64::from(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: [u32; 3], change: Change, expected: Result<[u32; 3], NotPermitted>) {
        let [real, effective, saved] = before;
        let ids = Ids { real, effective, saved, filesystem: effective };
        let after = ids.changed(change, effective == 0);
        assert_eq!(after.map(|ids| [ids.real, ids.effective, ids.saved]), expected, "{before:?} {change:?}");
        if let Ok(after) = after
            && !matches!(change, Change::Filesystem(_))
        {
            assert_eq!(after.filesystem, after.effective);
        }
    }

    #[test]
    fn root_that_sets_its_id_is_root_no_more() {
        check([0, 0, 0], Change::Set(33), Ok([33, 33, 33]));
        check([33, 33, 33], Change::Set(0), Err(NotPermitted));
        check([33, 33, 33], Change::Set(33), Ok([33, 33, 33]));
        check([33, 33, 33], Change::All(None, Some(0), None), Err(NotPermitted));
        check([33, 33, 33], Change::RealEffective(Some(0), Some(0)), Err(NotPermitted));
    }

    #[test]
    fn an_effective_id_can_be_given_up_for_a_while() {
        check([0, 0, 0], Change::All(None, Some(33), None), Ok([0, 33, 0]));
        check([0, 33, 0], Change::All(None, Some(0), None), Ok([0, 0, 0]));
        check([0, 33, 0], Change::Set(0), Ok([0, 0, 0]));
        check([0, 33, 0], Change::Set(5), Err(NotPermitted));
    }

    #[test]
    fn the_saved_id_follows_setreuid_as_the_manual_has_it() {
        check([0, 0, 0], Change::RealEffective(Some(33), Some(33)), Ok([33, 33, 33]));
        check([0, 0, 0], Change::RealEffective(None, Some(33)), Ok([0, 33, 33]));
        check([0, 33, 33], Change::RealEffective(None, Some(0)), Ok([0, 0, 33]));
        check([5, 6, 7], Change::RealEffective(Some(6), Some(5)), Ok([6, 5, 5]));
        check([5, 6, 7], Change::RealEffective(Some(7), None), Err(NotPermitted));
    }

    #[test]
    fn the_id_for_files_moves_alone_and_never_fails() {
        let root = Ids::default();
        let after = root.changed(Change::Filesystem(33), true).unwrap();
        assert_eq!(after, Ids { filesystem: 33, ..root });
        let user = Ids::everywhere(5);
        assert_eq!(user.changed(Change::Filesystem(33), false), Ok(user));
    }

    #[test]
    fn groups_are_changed_after_users_only_with_capabilities_that_were_kept() {
        let drop = |keeps_capabilities| {
            let root = Identity { keeps_capabilities, ..Identity::default() };
            root.with_user(Change::Set(33)).unwrap().with_group(Change::Set(34))
        };
        assert_eq!(drop(false), Err(NotPermitted));
        let kept = drop(true).unwrap();
        assert_eq!((kept.user, kept.group), (Ids::everywhere(33), Ids::everywhere(34)));
        assert_eq!(kept.with_user(Change::Set(0)), Err(NotPermitted));
    }

    #[test]
    fn an_identity_is_found_by_the_number_that_it_got() {
        let mut identities = Identities::default();
        let (user, group) = (Ids::everywhere(33), Ids::everywhere(34));
        let user = Identity { user, group, groups: vec![1, 2], ..Identity::default() };
        let number = identities.number_of(user.clone()).unwrap();
        assert_eq!(identities.number_of(user.clone()), Some(number));
        assert_eq!(identities.of(number), user);
        for other in [number + 1, u64::MAX, 0, 4096] {
            assert_eq!(identities.of(other), Identity::default(), "{other:#x}");
        }
    }
}
