"""What tests share: servers, fakes, consumers."""
