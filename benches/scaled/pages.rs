//! The servers' metrics pages: the families that the picker reads, one server per address of 127.0.2.0/24.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use pointsman::replay::pod::Hardware;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::fleet::Fleet;

/// Serves the pages of `count` servers on this thread; their addresses.
pub async fn start(fleet: &Rc<RefCell<Fleet>>, count: usize) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for pod in 0..count {
        let ip = Ipv4Addr::new(127, 0, 2, u8::try_from(pod + 1).expect("few servers"));
        let listener = TcpListener::bind((ip, 0)).await.expect("a free port");
        addresses.push(listener.local_addr().expect("bound"));
        let fleet = Rc::clone(fleet);
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(stream, Rc::clone(&fleet), pod));
            }
        });
    }
    addresses
}

async fn serve(mut stream: TcpStream, fleet: Rc<RefCell<Fleet>>, pod: usize) {
    let mut request = Vec::with_capacity(2048);
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read_buf(&mut request).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let page = page(&fleet.borrow(), pod);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\r\n{page}",
            page.len()
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn page(fleet: &Fleet, pod: usize) -> String {
    let state = fleet.published(pod);
    let (block, blocks) = fleet.cache(&Hardware::default());
    format!(
        "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{model_name=\"m\"}} {}\n\
         # TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{model_name=\"m\"}} {}\n\
         # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{model_name=\"m\"}} {}\n\
         # TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{block_size=\"{block}\",num_gpu_blocks=\"{blocks}\"}} 1\n",
        state.waiting, state.running, state.kv
    )
}
