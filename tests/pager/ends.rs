//! Bad ends: nobody reads a page that is not what was sent.

use std::time::Duration;

use super::harness::{
    Cgroup, Task, eventually, folder, lent, object, processes, resident, sigkill, spec, until,
};
use decamp::model::page::PAGE_SIZE;
use decamp::pager::{Ending, Pager, PagerState};

const PAGES: u64 = 32 * 1024;

#[tokio::test]
async fn when_the_worker_dies_the_container_dies_and_reads_no_zero() {
    // Before the fill, at moments in it, and possibly after it.
    for wait_ms in [None, Some(0), Some(3), Some(10), Some(30), Some(80)] {
        let dir = folder();
        let (pager, mut task, _) = lent(dir.path(), PAGES).await;
        let cgroup = Cgroup::with(&task);
        let (_, worker) = processes(dir.path());
        pager.release_to_container(&cgroup.0, task.pid()).await.unwrap();
        let bad = dir.path().join("bad");
        task.must(&format!("spin {}", bad.display()));
        if let Some(wait_ms) = wait_ms {
            task.must("restored");
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
        let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::SIGKILL);
        let end = until(&pager, PagerState::is_final).await;
        match end {
            PagerState::Lost => {
                assert!(!task.wait().success());
                eventually("everybody is dead", || {
                    std::fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap().is_empty()
                })
                .await;
                let report = pager.report().unwrap();
                assert_eq!(report.state, Ending::Lost);
                assert!(
                    report.pages_total >= report.pages_missing && report.why.contains("worker"),
                    "{report:?}"
                );
            }
            // It had just finished, whether the signal found it or not.
            PagerState::Resident { .. } if wait_ms.is_some() => {
                let _either_way = killed;
                task.must("all");
            }
            other => panic!("{other:?}"),
        }
        for pid in std::fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _gone = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.parse().unwrap()),
                nix::sys::signal::SIGKILL,
            );
        }
        assert!(!bad.exists(), "{}", std::fs::read_to_string(&bad).unwrap());
    }
}

#[tokio::test]
async fn a_damaged_page_is_never_read() {
    for page in [7, 20_000] {
        let dir = folder();
        let pager = Pager::spawn(spec(dir.path())).await.unwrap();
        let mut task = Task::start(42, PAGES, dir.path());
        let cgroup = Cgroup::with(&task);
        let (object, look) = object(42, task.base, task.pages);
        look.write_pages(task.base / PAGE_SIZE as u64 + page, &[9; PAGE_SIZE]).unwrap();
        pager.load(vec![object]).await.unwrap();
        task.must("lend");
        pager.release_to_container(&cgroup.0, task.pid()).await.unwrap();
        let bad = dir.path().join("bad");
        task.must(&format!("spin {}", bad.display()));
        task.say("restored");
        assert_eq!(until(&pager, PagerState::is_final).await, PagerState::Lost);
        assert!(!task.wait().success());
        assert!(pager.report().unwrap().why.contains("digest"), "{:?}", pager.report());
        assert!(!bad.exists(), "{}", std::fs::read_to_string(&bad).unwrap());
    }
}

#[tokio::test]
async fn without_a_container_to_kill_the_descriptors_are_held_until_there_is_one() {
    let dir = folder();
    let (pager, mut task, _) = lent(dir.path(), PAGES).await;
    let cgroup = Cgroup::with(&task);
    let bad = dir.path().join("bad");
    task.must(&format!("spin {}", bad.display()));
    let (keeper, worker) = processes(dir.path());
    sigkill(worker);
    assert_eq!(until(&pager, PagerState::is_final).await, PagerState::Lost);
    // Whoever reads now waits; the keeper is there.
    assert!(std::path::Path::new(&format!("/proc/{keeper}")).exists());
    assert!(pager.release_to_container(&cgroup.0, task.pid()).await.is_err());
    assert!(!task.wait().success());
    assert!(!bad.exists(), "{}", std::fs::read_to_string(&bad).unwrap());
}

#[tokio::test]
async fn a_restore_that_fails_is_reported_and_nothing_is_killed() {
    let dir = folder();
    let (pager, mut task, _) = lent(dir.path(), 1024).await;
    task.must("hangup");
    let end = until(&pager, PagerState::is_final).await;
    assert!(matches!(&end, PagerState::Failed(why) if why.contains("hung up")), "{end:?}");
    pager.abort().await.unwrap();
    eventually("a report", || pager.report().is_some_and(|report| report.state == Ending::Failed)).await;
}

#[tokio::test]
async fn given_up_before_criu_came() {
    let dir = folder();
    let pager = Pager::spawn(spec(dir.path())).await.unwrap();
    until(&pager, |state| *state == PagerState::Listening).await;
    let (keeper, _) = processes(dir.path());
    pager.abort().await.unwrap();
    eventually("both are gone", || {
        std::fs::read_to_string(format!("/proc/{keeper}/cmdline")).unwrap_or_default().is_empty()
    })
    .await;
    pager.abort().await.unwrap();
    assert_eq!(pager.report().unwrap().state, Ending::Failed);
}

#[tokio::test]
async fn a_container_that_runs_is_not_given_up() {
    let dir = folder();
    let (pager, mut task, _) = lent(dir.path(), 1024).await;
    let cgroup = Cgroup::with(&task);
    pager.release_to_container(&cgroup.0, task.pid()).await.unwrap();
    assert!(pager.abort().await.unwrap_err().to_string().contains("runs"));
    task.must("restored");
    resident(&pager).await;
    task.must("all");
    task.kill();
}
