"""What the tests share: generators, small corpora, servers, stubs."""
