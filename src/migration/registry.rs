//! Migrations in flight on this host, both ways: one per container, and not too many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::guard::Cancel;
use super::progress::Progress;
use crate::model::ContainerId;
use crate::rpc::v1::Reason;
use crate::telemetry;

#[derive(Debug, Clone)]
enum Entry {
    Leaving { progress: Progress, cancel: Cancel },
    Arriving,
}

/// The table.
#[derive(Debug, Default)]
pub struct Registry {
    table: Mutex<HashMap<ContainerId, Entry>>,
}

/// A place in the table; dropping it frees the container's name.
#[derive(Debug)]
pub struct Reservation {
    registry: Arc<Registry>,
    container: ContainerId,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut table = self.registry.lock();
        table.remove(&self.container);
        count(&table);
    }
}

fn count(table: &HashMap<ContainerId, Entry>) {
    let in_flight = u32::try_from(table.len()).unwrap_or(u32::MAX);
    metrics::gauge!(telemetry::MIGRATIONS_IN_FLIGHT).set(f64::from(in_flight));
}

impl Registry {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(self: &Arc<Self>, id: &ContainerId, entry: Entry, max: usize) -> Result<Reservation, Reason> {
        let mut table = self.lock();
        if let Some(existing) = table.get(id) {
            let evidence = match existing {
                Entry::Leaving { progress, .. } => format!("migration {}", progress.migration()),
                Entry::Arriving => "it is arriving here".to_owned(),
            };
            return Err(Reason {
                code: "already-migrating".to_owned(),
                what: format!("{id} is being migrated already"),
                evidence,
                remedy: format!("wait for it (decamp watch {id}) or stop it (decamp cancel {id})"),
            });
        }
        if table.len() >= max {
            return Err(Reason {
                code: "too-many".to_owned(),
                what: "too many migrations at once".to_owned(),
                evidence: format!("{} in flight, [migration] max_concurrent is {max}", table.len()),
                remedy: "wait until one has finished".to_owned(),
            });
        }
        table.insert(id.clone(), entry);
        count(&table);
        Ok(Reservation { registry: Arc::clone(self), container: id.clone() })
    }

    /// A container is about to leave.
    ///
    /// # Errors
    /// It is migrating already, or too many are.
    pub fn reserve_departure(
        self: &Arc<Self>,
        progress: &Progress,
        cancel: &Cancel,
        max: usize,
    ) -> Result<Reservation, Reason> {
        let entry = Entry::Leaving { progress: progress.clone(), cancel: cancel.clone() };
        self.reserve(progress.container(), entry, max)
    }

    /// A container is about to arrive.
    ///
    /// # Errors
    /// As [`Registry::reserve_departure`].
    pub fn reserve_arrival(self: &Arc<Self>, id: &ContainerId, max: usize) -> Result<Reservation, Reason> {
        self.reserve(id, Entry::Arriving, max)
    }

    /// Is this container on its way in?
    #[must_use]
    pub fn arriving(&self, id: &ContainerId) -> bool {
        matches!(self.lock().get(id), Some(Entry::Arriving))
    }

    /// Departures in flight: all, or the one of this container or migration id.
    #[must_use]
    pub fn departures(&self, which: &str) -> Vec<(Progress, Cancel)> {
        let table = self.lock();
        let leaving = table.values().filter_map(|entry| match entry {
            Entry::Leaving { progress, cancel } => Some((progress.clone(), cancel.clone())),
            Entry::Arriving => None,
        });
        leaving
            .filter(|(progress, _)| {
                which.is_empty()
                    || progress.container().as_str() == which
                    || progress.migration().as_str() == which
            })
            .collect()
    }

    /// Both ways.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lock().len()
    }

    /// The departure of a container, if there is one.
    #[must_use]
    pub fn migration_of(&self, id: &ContainerId) -> Option<String> {
        match self.lock().get(id)? {
            Entry::Leaving { progress, .. } => Some(progress.migration().to_string()),
            Entry::Arriving => Some("arriving".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MigrationId;

    #[test]
    fn one_migration_per_container_and_a_bound_over_all() {
        let registry = Arc::new(Registry::default());
        let progress = Progress::new(MigrationId::fresh(), "a".try_into().unwrap());
        let cancel = Cancel::default();
        let first = registry.reserve_departure(&progress, &cancel, 2).unwrap();
        let again = registry.reserve_departure(&progress, &cancel, 2).unwrap_err();
        assert_eq!(again.code, "already-migrating");
        let _second = registry.reserve_arrival(&"b".try_into().unwrap(), 2).unwrap();
        assert_eq!(registry.reserve_arrival(&"c".try_into().unwrap(), 2).unwrap_err().code, "too-many");
        assert_eq!(registry.departures("a").len(), 1);
        assert_eq!(registry.departures("b").len(), 0);
        drop(first);
        assert!(registry.reserve_departure(&progress, &cancel, 2).is_ok());
    }
}
