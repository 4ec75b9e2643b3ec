//! How messages look as JSON where the generated form would be a bare number. It only renames; it decides nothing.

use serde::Serializer;

use super::v1::Phase;

impl Phase {
    /// The phase as one lower-case word: "pre-copy", "in-doubt".
    #[must_use]
    pub fn word(self) -> String {
        self.as_str_name().trim_start_matches("PHASE_").to_ascii_lowercase().replace('_', "-")
    }
}

/// Serializes the number of a [`Phase`] as its word; a number from a newer agent becomes "unknown".
///
/// # Errors
/// What the serializer says.
pub fn phase<S: Serializer>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    let word = Phase::try_from(*number).map_or_else(|_| "unknown".to_owned(), Phase::word);
    serializer.serialize_str(&word)
}

#[cfg(test)]
mod tests {
    use crate::rpc::v1::{Event, Failure, Note, Phase, PhaseChange, event::Body};

    #[test]
    fn a_phase_is_a_word() {
        let event = Event {
            migration_id: "m1".into(),
            body: Some(Body::Phase(PhaseChange { phase: Phase::CutOver.into() })),
            ..Event::default()
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["phase"]["phase"], "cut-over");
        assert_eq!(json["migration_id"], "m1");
        let failure = serde_json::to_value(Failure { phase: 9999, ..Failure::default() }).unwrap();
        assert_eq!(failure["phase"], "unknown");
    }

    #[test]
    fn an_events_body_is_a_field_of_the_event() {
        let event = Event { body: Some(Body::Note(Note { text: "hm".into() })), ..Event::default() };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"migration_id":"","container":"","unix_ms":0,"note":{"text":"hm"}}"#);
        let empty = serde_json::to_string(&Event::default()).unwrap();
        assert_eq!(empty, r#"{"migration_id":"","container":"","unix_ms":0}"#);
    }
}
