"""L2S (learn-to-steer): a small net that predicts the steering vector of each input."""
