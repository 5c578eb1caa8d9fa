//! Rustpeer is the Rust implementation of ttrpc at the other end of a unix socket: `rustpeer server PATH` or
//! `rustpeer client PATH`. It serves and calls the same service as gopeer, and reports its cases the same way.
//!
//! One thread: the crate's readers start a task per frame, and only there do those tasks run in order of arrival.

use std::collections::HashMap;
use std::env;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protobuf::well_known_types::wrappers::BytesValue;
use protobuf::Message;
use ttrpc::context::{self, Context};
use ttrpc::r#async::{
    Client, ClientStream, ClientStreamReceiver, ClientStreamSender, MethodHandler, Server,
    ServerStream, ServerStreamReceiver, ServerStreamSender, Service, StreamHandler, StreamInner,
    TtrpcContext,
};
use ttrpc::{error::get_rpc_status, get_status, Code, Error, Request, Response};

const SERVICE: &str = "interop.v1.Interop";

type Answer<T> = Result<T, Error>;
type Checked = Result<(), String>;
type Case<'a> = Pin<Box<dyn Future<Output = Checked> + 'a>>;

fn message(value: impl Into<Vec<u8>>) -> BytesValue {
    BytesValue {
        value: value.into(),
        ..Default::default()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, role, path] = arguments.as_slice() else {
        panic!("usage: rustpeer server|client PATH")
    };
    let address = format!("unix://{path}");
    if role == "server" {
        serve(&address).await;
    } else if !call(&address).await {
        std::process::exit(1);
    }
}

// Server

async fn serve(address: &str) {
    let methods = ["Echo", "Fail", "Metadata", "Deadline", "Hang"];
    let streams = ["Sum", "Count", "Chat", "Break"];
    let service = Service {
        methods: methods
            .map(|name| {
                (
                    name.to_string(),
                    Box::new(Unary(name)) as Box<dyn MethodHandler + Send + Sync>,
                )
            })
            .into(),
        streams: streams
            .map(|name| {
                (
                    name.to_string(),
                    Arc::new(Streaming(name)) as Arc<dyn StreamHandler + Send + Sync>,
                )
            })
            .into(),
    };
    let services = HashMap::from([(SERVICE.to_string(), service)]);
    let mut server = Server::new()
        .bind(address)
        .expect("bind")
        .register_service(services);
    server.start().await.expect("start");
    println!("ready");
    std::future::pending::<()>().await;
}

struct Unary(&'static str);

#[async_trait]
impl MethodHandler for Unary {
    async fn handler(&self, context: TtrpcContext, request: Request) -> Answer<Response> {
        let input = BytesValue::parse_from_bytes(&request.payload)
            .map_err(|e| Error::Others(e.to_string()))?;
        let mut response = Response::new();
        match unary(self.0, &context, input.value).await {
            Ok(output) => {
                response.set_status(get_status(Code::OK, ""));
                response.payload = message(output).write_to_bytes().expect("encode");
            }
            Err(Error::RpcStatus(status)) => response.set_status(status),
            Err(error) => response.set_status(get_status(Code::UNKNOWN, format!("{error:?}"))),
        }
        Ok(response)
    }
}

async fn unary(method: &str, context: &TtrpcContext, input: Vec<u8>) -> Answer<Vec<u8>> {
    let text = String::from_utf8_lossy(&input).into_owned();
    match method {
        "Echo" => Ok(input),
        "Fail" => Err(get_rpc_status(
            Code::FAILED_PRECONDITION,
            format!("refused {text}"),
        )),
        "Metadata" => Ok(format!(
            "[{}]",
            context
                .metadata
                .get(&text)
                .cloned()
                .unwrap_or_default()
                .join(" ")
        )
        .into()),
        "Deadline" if context.timeout_nano == 0 => Ok(b"none".to_vec()),
        "Deadline" => Ok(format!("{}", (context.timeout_nano as f64 / 1e9).round()).into()),
        _ => std::future::pending().await,
    }
}

struct Streaming(&'static str);

#[async_trait]
impl StreamHandler for Streaming {
    async fn handler(
        &self,
        _context: TtrpcContext,
        mut inner: StreamInner,
    ) -> Answer<Option<Response>> {
        match self.0 {
            "Sum" => {
                let mut stream: ServerStreamReceiver<BytesValue> = ServerStreamReceiver::new(inner);
                let mut total = 0;
                while let Some(input) = stream.recv().await? {
                    total += input.value.len();
                }
                let mut response = Response::new();
                response.set_status(get_status(Code::OK, ""));
                response.payload = message(total.to_string()).write_to_bytes().expect("encode");
                Ok(Some(response))
            }
            "Chat" => {
                let mut stream: ServerStream<BytesValue, BytesValue> = ServerStream::new(inner);
                while let Some(input) = stream.recv().await? {
                    stream
                        .send(&message(input.value.to_ascii_uppercase()))
                        .await?;
                }
                Ok(None)
            }
            name => {
                let input = BytesValue::parse_from_bytes(&inner.recv().await?)
                    .map_err(|e| Error::Others(e.to_string()))?;
                let stream: ServerStreamSender<BytesValue> = ServerStreamSender::new(inner);
                if name == "Count" {
                    for i in 0..input.value.len() {
                        stream.send(&message(i.to_string())).await?;
                    }
                    return Ok(None);
                }
                stream.send(&message("one")).await?;
                let mut response = Response::new();
                response.set_status(get_status(Code::ABORTED, "broke off"));
                Ok(Some(response))
            }
        }
    }
}

// Client

async fn call(address: &str) -> bool {
    let client = Client::connect(address).await.expect("connect");
    let cases: Vec<(&str, Case)> = vec![
        ("unary", Box::pin(call_echo(&client, b"hello".to_vec()))),
        ("empty", Box::pin(call_echo(&client, Vec::new()))),
        ("status", Box::pin(call_status(&client))),
        ("unimplemented", Box::pin(call_unimplemented(&client))),
        ("metadata", Box::pin(call_metadata(&client))),
        ("deadline", Box::pin(call_deadline(&client))),
        ("timeout", Box::pin(call_timeout(&client))),
        ("large", Box::pin(call_echo(&client, vec![b'x'; 1 << 20]))),
        ("oversize-reply", Box::pin(call_oversize_reply(&client))),
        ("concurrent", Box::pin(call_concurrent(&client))),
        ("client-stream", Box::pin(call_sum(&client))),
        ("server-stream", Box::pin(call_count(&client))),
        ("bidi-stream", Box::pin(call_chat(&client))),
        ("broken-stream", Box::pin(call_break(&client))),
        ("alive", Box::pin(call_echo(&client, b"again".to_vec()))),
    ];
    let mut good = true;
    for (name, case) in cases {
        match tokio::time::timeout(Duration::from_secs(30), case).await {
            Ok(Ok(())) => println!("ok {name}"),
            Ok(Err(what)) => {
                good = false;
                println!("FAIL {name}: {what}");
            }
            Err(_) => {
                good = false;
                println!("FAIL {name}: no end within 30 s");
            }
        }
    }
    good
}

fn request(method: &str, payload: Vec<u8>, context: Context) -> Request {
    Request {
        service: SERVICE.to_string(),
        method: method.to_string(),
        timeout_nano: context.timeout_nano,
        metadata: context::to_pb(context.metadata),
        payload,
        ..Default::default()
    }
}

async fn invoke(
    client: &Client,
    method: &str,
    input: impl Into<Vec<u8>>,
    context: Context,
) -> Answer<Vec<u8>> {
    let payload = message(input).write_to_bytes().expect("encode");
    let response = client.request(request(method, payload, context)).await?;
    Ok(BytesValue::parse_from_bytes(&response.payload)
        .map_err(|e| Error::Others(e.to_string()))?
        .value)
}

fn want(got: Answer<Vec<u8>>, wanted: &[u8]) -> Checked {
    match got {
        Ok(value) if value == wanted => Ok(()),
        Ok(value) => Err(format!("got {} bytes, want {}", value.len(), wanted.len())),
        Err(error) => Err(format!("{error:?}")),
    }
}

fn want_code<T: std::fmt::Debug>(got: Answer<T>, code: Code) -> Checked {
    match got {
        Err(Error::RpcStatus(status)) if status.code() == code => Ok(()),
        other => Err(format!("got {other:?}, want {code:?}")),
    }
}

async fn call_echo(client: &Client, input: Vec<u8>) -> Checked {
    want(
        invoke(client, "Echo", input.clone(), Context::default()).await,
        &input,
    )
}

async fn call_status(client: &Client) -> Checked {
    want_code(
        invoke(client, "Fail", "this", Context::default()).await,
        Code::FAILED_PRECONDITION,
    )
}

async fn call_unimplemented(client: &Client) -> Checked {
    want_code(
        invoke(client, "Nothing", "", Context::default()).await,
        Code::UNIMPLEMENTED,
    )
}

async fn call_metadata(client: &Client) -> Checked {
    let metadata = HashMap::from([(
        "some-key".to_string(),
        vec!["a".to_string(), "b".to_string()],
    )]);
    want(
        invoke(
            client,
            "Metadata",
            "some-key",
            context::with_metadata(metadata),
        )
        .await,
        b"[a b]",
    )
}

async fn call_deadline(client: &Client) -> Checked {
    want(
        invoke(
            client,
            "Deadline",
            "",
            context::with_duration(Duration::from_secs(20)),
        )
        .await,
        b"20",
    )
}

async fn call_timeout(client: &Client) -> Checked {
    match invoke(
        client,
        "Hang",
        "",
        context::with_duration(Duration::from_millis(100)),
    )
    .await
    {
        Ok(_) => Err("Hang returned".to_string()),
        Err(_) => Ok(()),
    }
}

async fn call_oversize_reply(client: &Client) -> Checked {
    want_code(
        invoke(client, "Huge", "", Context::default()).await,
        Code::RESOURCE_EXHAUSTED,
    )
}

async fn call_concurrent(client: &Client) -> Checked {
    let tasks: Vec<_> = (0..1000)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move {
                want(
                    invoke(&client, "Echo", i.to_string(), Context::default()).await,
                    i.to_string().as_bytes(),
                )
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|e| e.to_string())??;
    }
    Ok(())
}

async fn open(
    client: &Client,
    method: &str,
    payload: Vec<u8>,
    from_client: bool,
    from_server: bool,
) -> Result<StreamInner, String> {
    let request = request(method, payload, Context::default());
    client
        .new_stream(request, from_client, from_server)
        .await
        .map_err(|e| format!("{e:?}"))
}

async fn call_sum(client: &Client) -> Checked {
    let mut stream: ClientStreamSender<BytesValue, BytesValue> =
        ClientStreamSender::new(open(client, "Sum", Vec::new(), true, false).await?);
    for i in 0..10 {
        stream
            .send(&message(vec![0; i]))
            .await
            .map_err(|e| format!("{e:?}"))?;
    }
    want(stream.close_and_recv().await.map(|m| m.value), b"45")
}

async fn call_count(client: &Client) -> Checked {
    let payload = message(vec![0; 50]).write_to_bytes().expect("encode");
    let mut stream: ClientStreamReceiver<BytesValue> = ClientStreamReceiver::new(
        open(client, "Count", payload, false, true).await?,
        client.clone(),
    );
    for i in 0..50 {
        want(
            stream.recv().await.map(|m| m.expect("a message").value),
            i.to_string().as_bytes(),
        )?;
    }
    match stream.recv().await {
        Ok(None) => Ok(()),
        other => Err(format!("after the last message: {other:?}")),
    }
}

async fn call_chat(client: &Client) -> Checked {
    let mut stream: ClientStream<BytesValue, BytesValue> =
        ClientStream::new(open(client, "Chat", Vec::new(), true, true).await?);
    for word in ["one", "", "two"] {
        stream
            .send(&message(word))
            .await
            .map_err(|e| format!("{e:?}"))?;
        want(
            stream.recv().await.map(|m| m.value),
            word.to_uppercase().as_bytes(),
        )?;
    }
    stream.close_send().await.map_err(|e| format!("{e:?}"))?;
    match stream.recv().await {
        Err(Error::Eof) => Ok(()),
        other => Err(format!("after the last message: {other:?}")),
    }
}

async fn call_break(client: &Client) -> Checked {
    let mut stream: ClientStreamReceiver<BytesValue> = ClientStreamReceiver::new(
        open(client, "Break", Vec::new(), false, true).await?,
        client.clone(),
    );
    want(
        stream.recv().await.map(|m| m.expect("a message").value),
        b"one",
    )?;
    want_code(stream.recv().await, Code::ABORTED)
}
