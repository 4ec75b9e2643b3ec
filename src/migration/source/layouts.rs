//! Which pages each object has at the freeze, told in parts that fit into frames.

use super::super::MigrationError;
use super::Source;
use crate::model::layout::ObjectLayout;
use crate::model::limits::LAYOUT_PART_RUNS_MAX;
use crate::rpc::v1::{HiddenMapping, LayoutPart, PagemapRun, control_frame::Body};

impl Source {
    /// Sends one object's layout; the last part carries its roots.
    pub(super) async fn send_layout(&mut self, layout: ObjectLayout) -> Result<(), MigrationError> {
        let (object_type, object_id) = layout.object.to_wire();
        let part = || LayoutPart { object_type, object_id, ..LayoutPart::default() };
        for hidden in layout.hidden.chunks(LAYOUT_PART_RUNS_MAX) {
            let told = |it: &crate::model::page::PageRange| HiddenMapping {
                first_page: it.first.0,
                count: it.count,
            };
            let part = LayoutPart { hidden: hidden.iter().map(told).collect(), ..part() };
            self.session.send(Body::Layout(part)).await?;
        }
        let mut chunks = layout.runs.chunks(LAYOUT_PART_RUNS_MAX).peekable();
        loop {
            let runs = chunks.next().unwrap_or(&[]);
            let last = chunks.peek().is_none();
            let mut part = part();
            part.runs = runs
                .iter()
                .map(|run| PagemapRun { first_page: run.first, count: run.count, flags: run.flags })
                .collect();
            if last {
                part.root = layout.root.0.to_vec().into();
                if !layout.hidden.is_empty() {
                    part.hidden_root = layout.hidden_root.0.to_vec().into();
                }
            }
            self.session.send(Body::Layout(part)).await?;
            if last {
                return Ok(());
            }
        }
    }
}
