//! Another installation's daemon in the place of a unit's: how far it has come, as the ledger has it under `trial`.

use serde_json::{Value, json};

use super::record::{number, text};

pub const KEY: &str = "trial";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// It is to come next, and has so many seconds to settle.
    Next { patience: u32 },
    /// It has begun, and has not settled.
    Begun,
    /// It has settled, or has failed. Only daemons that began after this count for how many died.
    Past { since: u64 },
}

impl Trial {
    pub fn read(value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        match text(fields, "is")?.as_str() {
            "next" => Some(Self::Next { patience: number(fields, "patience")?.try_into().ok()? }),
            "begun" => Some(Self::Begun),
            "past" => Some(Self::Past { since: number(fields, "since")? }),
            _ => None,
        }
    }

    pub fn value(self) -> Value {
        match self {
            Self::Next { patience } => json!({"is": "next", "patience": patience}),
            Self::Begun => json!({"is": "begun"}),
            Self::Past { since } => json!({"is": "past", "since": since}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for trial in [Trial::Next { patience: 60 }, Trial::Begun, Trial::Past { since: 7 }] {
            assert_eq!(Trial::read(&trial.value()), Some(trial));
        }
    }

    #[test]
    fn what_makes_no_sense_is_no_trial() {
        for value in
            [json!(null), json!({}), json!({"is": "next"}), json!({"is": "won"}), json!({"is": "past", "since": "x"})]
        {
            assert_eq!(Trial::read(&value), None, "{value}");
        }
    }
}
