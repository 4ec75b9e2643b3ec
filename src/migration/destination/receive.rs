//! Data streams of one arrival: pages into the page store, files into their trees, images into their folder. The first failure
//! of any of them ends the arrival.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;

use super::super::{Host, MigrationError};
use super::preflight::Plan;
use super::restore::Arriving;
use crate::files::TreeSink;
use crate::journal::Record;
use crate::model::layout::{LayoutRun, ObjectLayout};
use crate::model::limits::{LAYOUT_PART_RUNS_MAX, OBJECTS_MAX};
use crate::model::page::{PageIndex, PageRange};
use crate::model::{Digest, MigrationId, ObjectId};
use crate::protocol::frame::read_message;
use crate::quic::{Link, Stream};
use crate::rpc::v1::{FilesHello, LayoutPart, RestoreRequest, StreamHello, stream_hello::Role};
use crate::store::{PageStore, RetainedPages, serve_page_stream};

/// Runs of all layouts together; 100 million pages in single-page runs.
const RUNS_MAX: usize = 100_000_000;

/// Streams that are under way when the restore is asked for end within moments.
const LAST_STREAMS_WITHIN: Duration = Duration::from_secs(30);

struct Shared {
    peer: String,
    migration: MigrationId,
    store: Arc<PageStore>,
    retained: Arc<RetainedPages>,
    sinks: HashMap<u32, Arc<Mutex<TreeSink>>>,
    images: PathBuf,
    kept: PathBuf,
    /// What has come to its end; streams end in any order, and after the frame that says how many there were.
    arrived: watch::Sender<Arrived>,
}

#[derive(Debug, Clone, Default)]
struct Arrived {
    trees: Vec<u32>,
    image_files: u32,
}

/// What arrives for one container.
pub(super) struct Incoming {
    shared: Arc<Shared>,
    failures: mpsc::Receiver<MigrationError>,
    acceptor: JoinHandle<()>,
    layouts: BTreeMap<ObjectId, ObjectLayout>,
    done: Vec<ObjectId>,
    runs: usize,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // The acceptor owns the tasks of all streams: they end with it.
        self.acceptor.abort();
    }
}

impl Incoming {
    pub(super) fn start(
        link: &Link,
        host: &Host,
        record: &Record,
        arriving: &Arriving,
        budget: u64,
        plan: &Plan,
    ) -> Self {
        let mut sinks = HashMap::from([(0, sink(&arriving.home, 0, arriving.root_tree(plan)))]);
        for mount in &plan.copied {
            let number = mount.index + 1;
            sinks.insert(number, sink(&arriving.home, number, arriving.home.volume(mount.index)));
        }
        let shared = Arc::new(Shared {
            peer: record.peer.to_string(),
            migration: record.migration.clone(),
            store: Arc::new(PageStore::new(budget)),
            retained: Arc::clone(&host.retained),
            sinks,
            images: arriving.scratch.images(),
            kept: arriving.scratch.kept(),
            arrived: watch::Sender::default(),
        });
        let (failed, failures) = mpsc::channel(1);
        let acceptor = tokio::spawn(accept(link.clone(), Arc::clone(&shared), failed));
        Self { shared, failures, acceptor, layouts: BTreeMap::new(), done: Vec::new(), runs: 0 }
    }

    pub(super) fn store(&self) -> &Arc<PageStore> {
        &self.shared.store
    }

    /// Returns when a data stream failed. Cancel safe.
    pub(super) async fn failed(&mut self) -> MigrationError {
        self.failures.recv().await.unwrap_or(MigrationError::Stopping)
    }

    fn broke(&self, what: impl Into<String>) -> MigrationError {
        MigrationError::Protocol { host: self.shared.peer.clone(), what: what.into() }
    }

    /// Writes every received tree to stable storage.
    pub(super) async fn sync(&self) {
        for (tree, sink) in &self.shared.sinks {
            if let Err(error) = sink.lock().await.sync().await {
                tracing::error!(
                    tree,
                    error = super::super::chain(&error),
                    "arrived files may not survive a crash of this host yet"
                );
            }
        }
    }

    /// Takes a part of a layout.
    pub(super) fn layout(&mut self, part: LayoutPart) -> Result<(), MigrationError> {
        let object = ObjectId::from_wire(part.object_type, part.object_id)
            .ok_or_else(|| self.broke(format!("object type {}", part.object_type)))?;
        self.runs += part.runs.len() + part.hidden.len();
        if part.runs.len() + part.hidden.len() > LAYOUT_PART_RUNS_MAX
            || self.runs > RUNS_MAX
            || self.layouts.len() > OBJECTS_MAX
        {
            return Err(self.broke("a layout is too large"));
        }
        if self.done.contains(&object) {
            return Err(self.broke(format!("the layout of {object} came twice")));
        }
        let layout = self.layouts.entry(object).or_insert_with(|| ObjectLayout::empty(object));
        layout.hidden.extend(
            part.hidden.iter().map(|it| PageRange { first: PageIndex(it.first_page), count: it.count }),
        );
        layout.runs.extend(part.runs.into_iter().map(|run| LayoutRun {
            first: run.first_page,
            count: run.count,
            flags: run.flags,
        }));
        if part.root.is_empty() {
            return Ok(());
        }
        let hidden_root = match part.hidden_root.is_empty() {
            true => Some(Digest([0; 32])),
            false => Digest::from_slice(&part.hidden_root),
        };
        match (Digest::from_slice(&part.root), hidden_root) {
            (Some(root), Some(hidden_root)) => (layout.root, layout.hidden_root) = (root, hidden_root),
            _ => return Err(self.broke("a layout's root has a wrong length")),
        }
        self.done.push(object);
        Ok(())
    }

    /// Everything that was announced is here; the layouts are handed out.
    pub(super) async fn complete(
        &mut self,
        request: &RestoreRequest,
    ) -> Result<Vec<ObjectLayout>, MigrationError> {
        let (layouts, done) = (self.layouts.len(), self.done.len());
        if layouts != request.objects as usize || done != layouts {
            return Err(self.broke(format!(
                "{done} of {layouts} layouts are whole, {} were announced",
                request.objects
            )));
        }
        let wanted =
            Arrived { trees: self.shared.sinks.keys().copied().collect(), image_files: request.image_files };
        let mut arrived = self.shared.arrived.subscribe();
        let all = arrived.wait_for(|arrived| {
            arrived.image_files >= wanted.image_files
                && wanted.trees.iter().all(|tree| arrived.trees.contains(tree))
        });
        let all = tokio::select! {
            all = tokio::time::timeout(LAST_STREAMS_WITHIN, all) => all.map(|arrived| arrived.is_ok()),
            Some(error) = self.failures.recv() => return Err(error),
        };
        if all != Ok(true) {
            let got = self.shared.arrived.borrow().clone();
            return Err(self.broke(format!("announced {wanted:?}, but only {got:?} came")));
        }
        Ok(std::mem::take(&mut self.layouts).into_values().collect())
    }
}

fn sink(home: &super::super::home::Home, tree: u32, root: PathBuf) -> Arc<Mutex<TreeSink>> {
    Arc::new(Mutex::new(TreeSink::new(root, home.seeds(tree))))
}

async fn accept(link: Link, shared: Arc<Shared>, failed: mpsc::Sender<MigrationError>) {
    let mut streams = tokio::task::JoinSet::new();
    loop {
        let error = tokio::select! {
            stream = link.accept_bi() => match stream {
                Ok(stream) => {
                    streams.spawn(serve(stream, Arc::clone(&shared)));
                    continue;
                }
                Err(error) => error.into(),
            },
            Some(done) = streams.join_next(), if !streams.is_empty() => match done {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => MigrationError::Stopping,
            },
        };
        // The first failure is the cause; later ones follow from it.
        if failed.try_send(error).is_err() {
            return;
        }
    }
}

async fn serve(mut stream: Stream, shared: Arc<Shared>) -> Result<(), MigrationError> {
    let hello: StreamHello = read_message(&mut stream).await?;
    let broke = |what: &str| MigrationError::Protocol { host: shared.peer.clone(), what: what.to_owned() };
    if hello.migration_id != shared.migration.as_str() {
        return Err(broke("opened a stream for another migration"));
    }
    match hello.role() {
        Role::Pages => {
            serve_page_stream(&mut stream, Arc::clone(&shared.store), Arc::clone(&shared.retained)).await?;
        }
        Role::Files => {
            let files: FilesHello = read_message(&mut stream).await?;
            let sink = shared
                .sinks
                .get(&files.tree)
                .ok_or_else(|| broke("sent a file tree that was not offered"))?;
            sink.lock().await.receive_round(&mut stream, files).await?;
            if files.last {
                shared.arrived.send_modify(|arrived| arrived.trees.push(files.tree));
            }
        }
        Role::Images => {
            let files = super::images::receive(&mut stream, &shared.images, &shared.kept).await?;
            shared.arrived.send_modify(|arrived| arrived.image_files += files);
        }
        _ => return Err(broke("opened a stream of a kind that does not belong here")),
    }
    stream.finish().await?;
    Ok(())
}
