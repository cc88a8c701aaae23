//! The pool with chunks that say when they run.

use std::sync::mpsc;

use super::*;

fn delay() -> Arc<QueueDelay> {
    QueueDelay::new(Metrics::new().queue_delay_seconds.clone())
}

/// Runs the chunks of one request.
async fn run<T: Send + 'static>(
    pool: &TokenizerPool,
    chunks: Vec<Chunk<T>>,
) -> Result<Vec<T>, PoolError> {
    let cost = chunks.iter().map(|chunk| chunk.cost).sum();
    pool.open(SchedulingHints::default(), cost)
        .run(chunks)
        .await
}

fn pool(threads: usize) -> TokenizerPool {
    TokenizerPool::start(threads, delay(), Metrics::new())
}

fn chunk<T>(work: impl FnOnce() -> T + Send + 'static) -> Chunk<T> {
    Chunk {
        cost: CHUNK_COST,
        work: Box::new(move || Ok(work())),
    }
}

#[tokio::test]
async fn results_come_in_the_order_of_the_chunks() {
    let pool = pool(3);
    let chunks = (0..100).map(|number| chunk(move || number)).collect();
    let results = run(&pool, chunks).await.unwrap();
    assert_eq!(results, (0..100).collect::<Vec<_>>());
    let none = run::<()>(&pool, Vec::new()).await;
    assert_eq!(none, Ok(Vec::new()));
}

/// Requests of many chunks are under way on every thread when a small one comes: it is the next.
#[tokio::test]
async fn a_small_request_is_done_after_one_chunk_of_each_thread() {
    let pool = Arc::new(pool(2));
    let order = Arc::new(Mutex::new(Vec::new()));
    let (entered, entries) = mpsc::channel();
    let mut gates = Vec::new();
    let mut running = Vec::new();
    for name in 1..=200 {
        let chunks = (0..5).map(|nth| {
            let order = order.clone();
            // The first chunk of the first two requests holds its thread.
            let gate = (name <= 2 && nth == 0).then(mpsc::channel::<()>);
            let gate = gate.map(|(open, gate)| {
                gates.push(open);
                (entered.clone(), gate)
            });
            chunk(move || {
                if let Some((entered, gate)) = gate {
                    entered.send(()).unwrap();
                    // An error means that the gate is open for good.
                    let _ = gate.recv();
                }
                order.lock().unwrap().push(name);
            })
        });
        let chunks: Vec<_> = chunks.collect();
        let pool = pool.clone();
        let work = async move { run(&pool, chunks).await };
        running.push(tokio::spawn(work));
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        entries.recv().unwrap();
    }
    // From here on, both threads are held.
    let earlier = std::mem::take(&mut *order.lock().unwrap()).len();
    let small = {
        let (pool, order) = (pool.clone(), order.clone());
        let chunks = vec![chunk(move || order.lock().unwrap().push(0))];
        tokio::spawn(async move { run(&pool, chunks).await })
    };
    tokio::task::yield_now().await;
    // One thread is let go; the other stays held until the small request is done.
    let held = gates.pop();
    gates.clear();
    small.await.unwrap().unwrap();
    let before = order.lock().unwrap().iter().position(|&name| name == 0);
    assert!(before.unwrap() <= 1, "{before:?} chunks came first");
    drop(held);
    for request in running {
        request.await.unwrap().unwrap();
    }
    assert_eq!(earlier + order.lock().unwrap().len(), 1001);
}

#[tokio::test]
async fn chunks_of_a_client_that_left_are_not_run() {
    let pool = pool(1);
    let (entered, entries) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let ran = Arc::new(Mutex::new(0));
    let count = ran.clone();
    let mut chunks = vec![chunk(move || {
        entered.send(()).unwrap();
        let _ = gate.recv();
    })];
    chunks.extend((0..9).map(|_| {
        let ran = ran.clone();
        chunk(move || *ran.lock().unwrap() += 1)
    }));
    let mut request = Box::pin(run(&pool, chunks));
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    assert!(request.as_mut().poll(&mut context).is_pending());
    entries.recv().unwrap();
    drop(request);
    drop(open);
    let next = run(&pool, vec![chunk(|| 7)]).await;
    assert_eq!(next, Ok(vec![7]));
    assert_eq!(*count.lock().unwrap(), 0);
}

#[tokio::test]
async fn an_error_ends_its_request_and_a_panic_no_thread() {
    let metrics = Metrics::new();
    let pool = TokenizerPool::start(1, delay(), metrics.clone());
    let ran = Arc::new(Mutex::new(0));
    let failing = |work: Box<dyn FnOnce() -> Result<(), EncodeError> + Send>| {
        let ran = ran.clone();
        let rest = chunk(move || *ran.lock().unwrap() += 1);
        vec![Chunk { cost: 1, work }, rest]
    };
    let error = EncodeError::Tokenizer("no".into());
    let result = Err(error.clone());
    let answer = run(&pool, failing(Box::new(move || result))).await;
    assert_eq!(answer, Err(error.into()));
    let panics = failing(Box::new(|| panic!("planted")));
    let answer = run(&pool, panics).await;
    assert_eq!(answer, Err(PoolError::Panicked("planted".into())));
    assert_eq!(metrics.tokenizer_panics.get(), 1);
    let next = run(&pool, vec![chunk(|| 7)]).await;
    assert_eq!(next, Ok(vec![7]));
    assert_eq!(
        *ran.lock().unwrap(),
        0,
        "the rest of a failed request is not run"
    );
}
