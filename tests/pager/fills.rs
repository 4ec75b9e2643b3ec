//! Everything arrives, whatever the task does meanwhile.

use super::harness::{Task, processes, sigkill};
use super::harness::{eventually, folder, lent, object, resident, spec, until};
use decamp::pager::{Pager, PagerHandle, PagerState};

const PAGES: u64 = 32 * 1024;

/// The task does something while the fill runs, and another one before it may start.
async fn while_filling(command: &str) {
    for early in [false, true] {
        let dir = folder();
        let (pager, mut task, _) = lent(dir.path(), PAGES).await;
        // Early, everything comes by faults alone.
        for command in if early { [command, "restored"] } else { ["restored", command] } {
            task.must(command);
        }
        resident(&pager).await;
    }
}

#[tokio::test]
async fn every_page_is_right_under_random_touches_and_the_memory_is_given_back() {
    let dir = folder();
    let (pager, mut task, look) = lent(dir.path(), PAGES).await;
    assert!(look.allocated_bytes().unwrap() > 0);
    // Faults are answered before CRIU has finished.
    task.must("touch 1 500");
    until(&pager, |state| matches!(state, PagerState::Serving { .. })).await;
    task.must("restored");
    task.must("touch 2 5000");
    task.must("all");
    resident(&pager).await;
    task.must("all");
    eventually("the memory is given back", || look.allocated_bytes().unwrap() == 0).await;
}

#[tokio::test]
async fn several_processes_and_one_without_content() {
    let dir = folder();
    let pager = Pager::spawn(spec(dir.path())).await.unwrap();
    let mut task = Task::start(42, 4096, dir.path());
    let mut other = Task::start(43, 4096, dir.path());
    let (mine, _) = object(42, task.base, task.pages);
    let (others, _) = object(43, other.base, other.pages);
    pager.load(vec![mine, others]).await.unwrap();
    // One connection carries all processes of a restore; the other task reaches it through its parent's hands.
    task.must("lend");
    other.must(&format!("lend-through {}", task.pid()));
    let mut empty = Task::start(44, 64, dir.path());
    empty.must(&format!("lend-through {}", task.pid()));
    assert!(empty.ask("touch 1 1").contains("bad"), "a process without content is zero");
    task.must("restored");
    task.must("all");
    other.must("all");
    resident(&pager).await;
}

#[tokio::test]
async fn forks_in_the_middle() {
    while_filling("fork").await;
}

#[tokio::test]
async fn mappings_move() {
    while_filling("remap").await;
}

#[tokio::test]
async fn what_was_given_back_does_not_come_again() {
    while_filling("dontneed 3 400").await;
    while_filling("dontneed 4 2000").await;
}

#[tokio::test]
async fn mappings_go() {
    while_filling("unmap").await;
}

#[tokio::test]
async fn what_was_written_stays() {
    while_filling("write 9").await;
}

#[tokio::test]
async fn a_task_that_exits_ends_its_fill() {
    let dir = folder();
    let (pager, mut task, look) = lent(dir.path(), PAGES).await;
    task.must("touch 1 100");
    task.must("restored");
    task.kill();
    resident(&pager).await;
    eventually("the memory is given back", || look.allocated_bytes().unwrap() == 0).await;
}

#[tokio::test]
async fn the_keeper_may_die_and_the_agent_may_go_and_come() {
    let dir = folder();
    let (pager, mut task, _) = lent(dir.path(), PAGES).await;
    let (keeper, _) = processes(dir.path());
    drop(pager);
    sigkill(keeper);
    task.must("touch 1 100");
    task.must("restored");
    task.must("touch 2 100");
    let spec = spec(dir.path());
    let pager = PagerHandle::reconnect(spec.folder, spec.state_file).await.unwrap();
    resident(&pager).await;
    task.must("all");
}
