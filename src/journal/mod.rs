//! What must survive a crash: who owns a container while it moves, and the history of moves. An embedded, crash-safe store
//! (redb); every write is on the disk when the call returns.
//!
//! ```text
//! source:       Preparing ──▶ Committing ──▶ (gone)            Committing after a crash = in doubt: ask the destination
//! destination:  Accepted ──▶ Committed ──▶ Running ──▶ Done    Accepted after a crash = fenced; Committed = look and decide
//!                   └──────────────┴──────▶ Fenced             a fenced epoch never runs here
//! ```
//! This room never decides anything: it remembers what was decided. It never keeps page contents.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::model::{ContainerId, Epoch, HostId, MigrationId};
use crate::rpc::v1::HistoryEntry;

const MIGRATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("migrations");
const HISTORY: TableDefinition<'_, (u64, &str), &[u8]> = TableDefinition::new("history");
/// Finished migrations that are remembered.
const HISTORY_MAX: u64 = 10_000;

/// How far a migration got on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Source: under way, the container is ours.
    Preparing,
    /// Source: Commit may have reached the destination; the container is frozen until the destination says whose it is.
    Committing,
    /// Destination: under way, the container is the source's.
    Accepted,
    /// Destination: the decision. From here on the container is ours unless it never ran.
    Committed,
    /// Destination: it runs here.
    Running,
    /// Destination: this epoch will never run here.
    Fenced,
}

/// One migration, as this host must remember it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which migration.
    pub migration: MigrationId,
    /// Which container.
    pub container: ContainerId,
    /// The other host.
    pub peer: HostId,
    /// Where the other host is reached, when we were the one that called.
    pub peer_address: Option<String>,
    /// Fences late messages.
    pub epoch: Epoch,
    /// How far it got.
    pub stage: Stage,
    /// The container's freezer cgroup, at the source.
    pub freezer: Option<PathBuf>,
    /// First process of the container at the source, with its start time: a container that came back under the same name is
    /// another one.
    #[serde(default)]
    pub init: Option<(i32, u64)>,
    /// Host ends of the container's network, to bring up again after an abort.
    pub host_ends: Vec<String>,
    /// When it began, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// When the tasks were resumed here, microseconds since the Unix epoch; 0: not yet.
    pub resumed_us: u64,
}

/// The store failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be opened.
    #[error("cannot open the journal {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// It cannot be read or written.
    #[error("cannot {doing} the journal")]
    Access {
        /// "read" or "write".
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// An entry is not readable.
    #[error("the journal's entry {key} cannot be understood: {why}")]
    Entry {
        /// Its key.
        key: String,
        /// What the decoder said.
        why: String,
    },
    /// The thread that writes was stopped with the agent.
    #[error("the agent is stopping")]
    Stopping,
}

fn access<E: Into<redb::Error>>(doing: &'static str) -> impl Fn(E) -> JournalError {
    move |error| JournalError::Access { doing, source: Box::new(error.into()) }
}

/// The journal of one agent.
#[derive(Debug, Clone)]
pub struct Journal {
    database: Arc<Database>,
}

impl Journal {
    /// Opens or creates it; only root can read it.
    ///
    /// # Errors
    /// It cannot be opened: another agent has it, the disk is full, it is damaged.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let fail = |error: redb::Error| JournalError::Open { path: path.to_owned(), source: Box::new(error) };
        let database = Database::create(path).map_err(|e| fail(e.into()))?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, private).map_err(|e| fail(redb::Error::Io(e)))?;
        let journal = Self { database: Arc::new(database) };
        journal.write(|transaction| {
            transaction.open_table(MIGRATIONS).map_err(access("write"))?;
            transaction.open_table(HISTORY).map_err(access("write"))?;
            Ok(())
        })?;
        Ok(journal)
    }

    fn write(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let transaction = self.database.begin_write().map_err(access("write"))?;
        change(&transaction)?;
        transaction.commit().map_err(access("write"))
    }

    async fn write_off_thread(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), JournalError> + Send + 'static,
    ) -> Result<(), JournalError> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || this.write(change)).await;
        done.map_err(|_| JournalError::Stopping)?
    }

    /// Remembers a record; it is on the disk when this returns.
    ///
    /// # Errors
    /// It could not be written: the caller must not act as if it were.
    pub async fn put(&self, record: &Record) -> Result<(), JournalError> {
        let key = record.migration.to_string();
        let value = serde_json::to_vec(record)
            .map_err(|error| JournalError::Entry { key: key.clone(), why: error.to_string() })?;
        self.write_off_thread(move |transaction| {
            let mut table = transaction.open_table(MIGRATIONS).map_err(access("write"))?;
            table.insert(key.as_str(), value.as_slice()).map_err(access("write"))?;
            Ok(())
        })
        .await
    }

    /// Forgets a record.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn remove(&self, migration: &MigrationId) -> Result<(), JournalError> {
        let key = migration.to_string();
        self.write_off_thread(move |transaction| {
            let mut table = transaction.open_table(MIGRATIONS).map_err(access("write"))?;
            table.remove(key.as_str()).map_err(access("write"))?;
            Ok(())
        })
        .await
    }

    /// One record.
    ///
    /// # Errors
    /// It could not be read or understood.
    pub fn get(&self, migration: &MigrationId) -> Result<Option<Record>, JournalError> {
        let transaction = self.database.begin_read().map_err(access("read"))?;
        let table = transaction.open_table(MIGRATIONS).map_err(access("read"))?;
        let found = table.get(migration.as_str()).map_err(access("read"))?;
        found.map(|value| decode(migration.as_str(), value.value())).transpose()
    }

    /// All records.
    ///
    /// # Errors
    /// One could not be read or understood.
    pub fn all(&self) -> Result<Vec<Record>, JournalError> {
        let transaction = self.database.begin_read().map_err(access("read"))?;
        let table = transaction.open_table(MIGRATIONS).map_err(access("read"))?;
        let mut records = Vec::new();
        for entry in table.iter().map_err(access("read"))? {
            let (key, value) = entry.map_err(access("read"))?;
            records.push(decode(key.value(), value.value())?);
        }
        Ok(records)
    }

    /// Adds a finished migration to the history, and forgets the oldest beyond a bound.
    ///
    /// # Errors
    /// It could not be written.
    pub async fn add_history(&self, entry: &HistoryEntry) -> Result<(), JournalError> {
        let (when, id, value) = (entry.finished_unix_ms, entry.migration_id.clone(), entry.encode_to_vec());
        self.write_off_thread(move |transaction| {
            let mut table = transaction.open_table(HISTORY).map_err(access("write"))?;
            table.insert((when, id.as_str()), value.as_slice()).map_err(access("write"))?;
            while redb::ReadableTableMetadata::len(&table).map_err(access("write"))? > HISTORY_MAX {
                if table.pop_first().map_err(access("write"))?.is_none() {
                    break;
                }
            }
            Ok(())
        })
        .await
    }

    /// Finished migrations, newest first.
    ///
    /// # Errors
    /// It could not be read.
    pub fn history(&self, limit: usize) -> Result<Vec<HistoryEntry>, JournalError> {
        let transaction = self.database.begin_read().map_err(access("read"))?;
        let table = transaction.open_table(HISTORY).map_err(access("read"))?;
        let mut entries = Vec::new();
        for entry in table.iter().map_err(access("read"))?.rev().take(limit) {
            let (key, value) = entry.map_err(access("read"))?;
            entries.push(HistoryEntry::decode(value.value()).map_err(|error| JournalError::Entry {
                key: key.value().1.to_owned(),
                why: error.to_string(),
            })?);
        }
        Ok(entries)
    }
}

fn decode(key: &str, value: &[u8]) -> Result<Record, JournalError> {
    serde_json::from_slice(value)
        .map_err(|error| JournalError::Entry { key: key.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stage: Stage) -> Record {
        Record {
            migration: MigrationId::fresh(),
            container: "redis".try_into().unwrap(),
            peer: "node-b".try_into().unwrap(),
            peer_address: Some("10.0.0.2:7626".to_owned()),
            epoch: Epoch(3),
            stage,
            freezer: Some("/sys/fs/cgroup/freezer/redis".into()),
            init: Some((7, 99)),
            host_ends: vec!["dc1".to_owned()],
            started_unix_ms: 1,
            resumed_us: 0,
        }
    }

    #[tokio::test]
    async fn records_survive_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.redb");
        let mut kept = record(Stage::Preparing);
        let gone = record(Stage::Accepted);
        {
            let journal = Journal::open(&path).unwrap();
            journal.put(&kept).await.unwrap();
            journal.put(&gone).await.unwrap();
            kept.stage = Stage::Committing;
            journal.put(&kept).await.unwrap();
            journal.remove(&gone.migration).await.unwrap();
            assert!(Journal::open(&path).is_err(), "two agents must not share a journal");
        }
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.all().unwrap(), vec![kept.clone()]);
        assert_eq!(journal.get(&kept.migration).unwrap(), Some(kept));
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn history_is_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("j")).unwrap();
        for (when, id) in [(5, "a"), (9, "b"), (7, "c")] {
            let entry =
                HistoryEntry { migration_id: id.to_owned(), finished_unix_ms: when, ..Default::default() };
            journal.add_history(&entry).await.unwrap();
        }
        let ids: Vec<String> = journal.history(2).unwrap().into_iter().map(|e| e.migration_id).collect();
        assert_eq!(ids, ["b", "c"]);
    }
}
