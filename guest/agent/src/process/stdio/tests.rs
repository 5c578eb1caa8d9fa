use std::io::Write;

use nix::unistd::pipe;
use tokio::task::yield_now;

use super::*;

fn life() -> (channel::Sender<Option<Status>>, Life) {
    channel::channel(None)
}

fn output() -> (std::fs::File, Output) {
    let (read, write) = pipe().unwrap();
    (write.into(), Output::new(Some(watched(read).unwrap())))
}

#[tokio::test(start_paused = true)]
async fn returns_what_is_there_and_then_the_end() {
    let ((_alive, life), (mut writer, output)) = (life(), output());
    writer.write_all(b"hello").unwrap();
    assert_eq!(*output.read(3, &life).await.unwrap(), *b"hel");
    assert_eq!(*output.read(0, &life).await.unwrap(), *b"lo");
    drop(writer);
    assert_eq!(*output.read(0, &life).await.unwrap(), *b"");
    assert_eq!(output.offset(), 5);
    assert!(output.ended());
}

#[tokio::test]
async fn waits_for_the_first_byte() {
    let ((_alive, life), (mut writer, output)) = (life(), output());
    let output = Arc::new(output);
    let reader = tokio::spawn({
        let output = output.clone();
        async move { output.read(100, &life).await.unwrap() }
    });
    for _ in 0..5 {
        yield_now().await;
    }
    writer.write_all(b"x").unwrap();
    assert_eq!(*reader.await.unwrap(), *b"x");
}

#[tokio::test]
async fn a_cancelled_read_takes_nothing() {
    let ((_alive, life), (mut writer, output)) = (life(), output());
    assert!(timeout(Duration::from_millis(1), output.read(100, &life)).await.is_err());
    writer.write_all(b"kept").unwrap();
    assert_eq!(*output.read(100, &life).await.unwrap(), *b"kept");
}

#[tokio::test(start_paused = true)]
async fn a_stranger_holding_the_pipe_delays_the_end_by_the_silence_only() {
    let ((alive, life), (mut stranger, output)) = (life(), output());
    stranger.write_all(b"last words").unwrap();
    alive.send(Some(0)).unwrap();
    assert_eq!(*output.read(0, &life).await.unwrap(), *b"last words");
    let before = Instant::now();
    assert_eq!(*output.read(0, &life).await.unwrap(), *b"");
    assert_eq!(before.elapsed(), SILENCE);
    assert_eq!(*output.read(0, &life).await.unwrap(), *b"", "the end is final");
}

#[tokio::test(start_paused = true)]
async fn a_talkative_stranger_does_not_keep_the_stream_open() {
    let ((alive, life), (mut stranger, output)) = (life(), output());
    stranger.write_all(b"own").unwrap();
    alive.send(Some(0)).unwrap();
    assert_eq!(*output.read(0, &life).await.unwrap(), *b"own");
    let before = Instant::now();
    loop {
        stranger.write_all(b"noise").unwrap();
        tokio::time::advance(Duration::from_millis(400)).await;
        if output.read(0, &life).await.unwrap().is_empty() {
            break;
        }
    }
    assert!(before.elapsed() <= CHATTER + SILENCE);
}

#[tokio::test(start_paused = true)]
async fn bytes_owed_are_delivered_however_late() {
    let ((alive, life), (mut writer, output)) = (life(), output());
    writer.write_all(&[7; 60_000]).unwrap();
    alive.send(Some(0)).unwrap();
    let mut total = 0;
    while total < 60_000 {
        total += output.read(10_000, &life).await.unwrap().len();
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    assert_eq!(total, 60_000);
    assert_eq!(*output.read(0, &life).await.unwrap(), *b"");
}

#[tokio::test]
async fn an_output_without_source_ends_with_the_process() {
    let (alive, life) = life();
    let output = Output::new(None);
    assert!(timeout(Duration::from_millis(1), output.read(0, &life)).await.is_err());
    alive.send(Some(0)).unwrap();
    assert_eq!(*output.read(0, &life).await.unwrap(), *b"");
}

#[tokio::test]
async fn write_waits_for_space_and_reports_everything() {
    let (_alive, life) = life();
    let (read, write) = pipe().unwrap();
    let input = Arc::new(Input::new(Some(watched(write).unwrap()), false));
    let output = Output::new(Some(watched(read).unwrap()));
    let data = vec![1; 300_000];
    let writer = tokio::spawn({
        let (input, life, data) = (input.clone(), life.clone(), data.clone());
        async move { input.write(&data, &life).await }
    });
    yield_now().await;
    input.close();
    let mut total = 0;
    loop {
        match output.read(0, &life).await.unwrap().len() {
            0 => break,
            count => total += count,
        }
    }
    assert_eq!(total, data.len(), "a close does not cut the write under way");
    assert_eq!(writer.await.unwrap().unwrap(), data.len());
    assert_eq!(input.offset(), 300_000);
    assert_eq!(input.write(b"more", &life).await.unwrap_err().code, ttrpc::Code::FAILED_PRECONDITION);
    input.close();
}

#[tokio::test]
async fn a_blocked_write_ends_with_the_process() {
    let (alive, life) = life();
    let (_read, write) = pipe().unwrap();
    let input = Arc::new(Input::new(Some(watched(write).unwrap()), false));
    let writer = tokio::spawn({
        let (input, life) = (input.clone(), life.clone());
        async move { input.write(&[0; 300_000], &life).await }
    });
    yield_now().await;
    alive.send(Some(9)).unwrap();
    assert_eq!(writer.await.unwrap().unwrap_err().code, ttrpc::Code::FAILED_PRECONDITION);
}

#[test]
fn lengths_are_bounded() {
    assert_eq!(capacity(0), DEFAULT_READ);
    assert_eq!(capacity(5), 5);
    assert_eq!(capacity(u32::MAX), MAX_READ);
}

/// Somebody who splices from a silent socket into the pipe, and so holds it; the socket's other side, and the thread's end.
fn splicing(pipe: &std::fs::File) -> (std::os::unix::net::UnixStream, std::thread::JoinHandle<isize>) {
    let (silent, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let (pipe, (tell, told)) = (pipe.try_clone().unwrap(), std::sync::mpsc::channel());
    let thread = std::thread::spawn(move || {
        // SAFETY: takes no pointers; gettid cannot fail.
        tell.send(unsafe { libc::gettid() }).unwrap();
        let (from, to) = (silent.as_raw_fd(), pipe.as_raw_fd());
        // SAFETY: both descriptors live for as long as the call, and the offsets are none.
        unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), 1 << 16, 0) }
    });
    let syscall = format!("/proc/self/task/{}/syscall", told.recv().unwrap());
    let number = format!("{} ", libc::SYS_splice);
    while !std::fs::read_to_string(&syscall).unwrap().starts_with(&number) {
        std::thread::yield_now();
    }
    (other, thread)
}

#[tokio::test]
async fn who_holds_the_pipe_does_not_hold_the_agent() {
    let ((_alive, life), (mut writer, output)) = (life(), output());
    writer.write_all(b"before").unwrap();
    let (mut other, thread) = splicing(&writer);
    // Of which nothing would come true if this thread waited.
    assert!(timeout(Duration::from_millis(100), output.read(100, &life)).await.is_err());
    other.write_all(b" and after").unwrap();
    assert_eq!(thread.join().unwrap(), 10);
    // What the read took that was given up is the next one's, and no more than that wants.
    assert_eq!(*output.read(3, &life).await.unwrap(), *b"bef");
    let mut rest = Vec::new();
    while rest.len() < 13 {
        rest.extend_from_slice(&output.read(100, &life).await.unwrap());
    }
    assert_eq!(rest, b"ore and after");
    assert_eq!(output.offset(), 16);
}

#[tokio::test]
async fn nor_does_one_who_holds_the_pipe_of_a_process_that_has_ended() {
    let ((alive, life), (mut writer, output)) = (life(), output());
    writer.write_all(b"last words").unwrap();
    let (mut other, thread) = splicing(&writer);
    alive.send(Some(0)).unwrap();
    assert!(timeout(Duration::from_millis(100), output.read(100, &life)).await.is_err());
    other.write_all(b"!").unwrap();
    thread.join().unwrap();
    drop(writer);
    let mut all = Vec::new();
    loop {
        match output.read(100, &life).await.unwrap() {
            bytes if bytes.is_empty() => break,
            bytes => all.extend_from_slice(&bytes),
        }
    }
    assert_eq!(all, b"last words!");
}

#[tokio::test]
async fn one_who_holds_the_pipe_for_ever_holds_up_the_end_for_so_long() {
    let ((alive, life), (mut writer, output)) = (life(), output());
    writer.write_all(b"never seen").unwrap();
    let (other, thread) = splicing(&writer);
    alive.send(Some(0)).unwrap();
    tokio::time::pause();
    let begin = Instant::now();
    let end = output.read(100, &life);
    tokio::pin!(end);
    assert!(waits(&mut end).await);
    tokio::time::advance(HELD - Duration::from_millis(10)).await;
    assert!(waits(&mut end).await);
    tokio::time::advance(Duration::from_millis(20)).await;
    assert_eq!(*end.await.unwrap(), *b"");
    assert!(begin.elapsed() < HELD * 2, "once, not for each step");
    drop(other);
    thread.join().unwrap();
}

/// Whether it waits after it was looked at.
async fn waits<F: std::future::Future>(future: &mut std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
}
