//! In which order records are undone.

use crate::ledger::Record;

/// A record that is still there, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    pub n: u64,
    pub why: String,
}

/// Undo the records of `scope` (`pod`: of every scope), newest first, but none before all that need it are gone.
///
/// A record whose dependant is out of scope, or could not be undone, is left alone and reported.
pub fn walk(records: &[Record], scope: &str, mut undo: impl FnMut(&Record) -> Result<(), String>) -> Vec<Leftover> {
    let mut present: Vec<&Record> = records.iter().collect();
    let mut pending: Vec<&Record> = records.iter().filter(|record| scope == "pod" || record.scope == scope).collect();
    let mut left = Vec::new();
    while let Some(at) = pending.iter().rposition(|record| dependant(&present, record).is_none()) {
        let record = pending.remove(at);
        match undo(record) {
            Ok(()) => present.retain(|other| !std::ptr::eq(*other, record)),
            Err(cause) => left.push(Leftover { n: record.n, why: format!("{}: {cause}", record.object) }),
        }
    }
    left.extend(pending.into_iter().rev().map(|record| blocked(&present, record)));
    left
}

/// A record still present that must go before `record`.
fn dependant<'a>(present: &[&'a Record], record: &Record) -> Option<&'a Record> {
    present.iter().copied().find(|other| other.needs.contains(&record.n) && other.n != record.n)
}

fn blocked(present: &[&Record], record: &Record) -> Leftover {
    let why = match dependant(present, record) {
        Some(other) => format!("{}: still needed by {} (record {})", record.object, other.object, other.n),
        None => format!("{}: not reached", record.object),
    };
    Leftover { n: record.n, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Object;

    fn record(n: u64, scope: &str, needs: &[u64]) -> Record {
        Record { n, scope: scope.to_owned(), needs: needs.to_vec(), object: Object::File(format!("/{n}").into()) }
    }

    /// Numbers in the order they were undone, and the numbers left; `broken` cannot be undone.
    fn run(records: &[Record], scope: &str, broken: &[u64]) -> (Vec<u64>, Vec<u64>) {
        let mut undone = Vec::new();
        let left = walk(records, scope, |record| {
            if broken.contains(&record.n) {
                return Err("broken".to_owned());
            }
            undone.push(record.n);
            Ok(())
        });
        (undone, left.into_iter().map(|leftover| leftover.n).collect())
    }

    #[test]
    fn newest_first() {
        let records = [record(1, "pod", &[]), record(2, "container/a", &[]), record(3, "pod", &[1])];
        assert_eq!(run(&records, "pod", &[]), (vec![3, 2, 1], vec![]));
    }

    #[test]
    fn only_its_scope() {
        let records = [record(1, "pod", &[]), record(2, "container/a", &[]), record(3, "container/b", &[])];
        assert_eq!(run(&records, "container/a", &[]), (vec![2], vec![]));
    }

    #[test]
    fn what_is_needed_by_something_left_stays() {
        let records = [record(1, "pod", &[]), record(2, "pod", &[1]), record(3, "pod", &[2]), record(4, "pod", &[])];
        assert_eq!(run(&records, "pod", &[3]), (vec![4], vec![3, 2, 1]));
    }

    #[test]
    fn a_dependant_outside_the_scope_protects() {
        let records = [record(1, "container/a", &[]), record(2, "pod", &[1])];
        assert_eq!(run(&records, "container/a", &[]), (vec![], vec![1]));
    }

    #[test]
    fn needs_go_before_numbers() {
        let records = [record(1, "pod", &[2]), record(2, "pod", &[]), record(3, "pod", &[])];
        assert_eq!(run(&records, "pod", &[]), (vec![3, 1, 2], vec![]));
    }

    #[test]
    fn a_circle_is_reported_and_one_that_needs_itself_is_not_a_circle() {
        let records = [record(1, "pod", &[2]), record(2, "pod", &[1]), record(3, "pod", &[3])];
        assert_eq!(run(&records, "pod", &[]), (vec![3], vec![2, 1]));
    }
}
