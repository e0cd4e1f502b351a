"""What tests share: servers, fakes, journals."""
