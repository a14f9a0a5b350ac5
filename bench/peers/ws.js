// What one writes by hand: `ws` and ioredis. Redis' pub/sub goes to every viewer of the channel; no journal, no
// resume, no grants. Viewers come in at /ws/NAME.
"use strict";
const { WebSocketServer } = require("ws");
const Redis = require("ioredis");

const redis = new Redis(process.argv[2]);
const channels = new Map();

function join(name, viewer) {
  const channel = channels.get(name);
  if (channel) {
    channel.viewers.add(viewer);
    if (channel.subscribed) viewer.send('{"type":"caught_up"}');
    return;
  }
  const viewers = new Set([viewer]);
  const added = { viewers, subscribed: false };
  channels.set(name, added);
  redis.subscribe(`bench:${name}`).then(() => {
    added.subscribed = true;
    for (const one of viewers) one.send('{"type":"caught_up"}');
  });
}

function leave(name, viewer) {
  const channel = channels.get(name);
  channel.viewers.delete(viewer);
  if (channel.viewers.size > 0) return;
  channels.delete(name);
  redis.unsubscribe(`bench:${name}`);
}

redis.on("message", (channel, text) => {
  for (const viewer of channels.get(channel.slice("bench:".length))?.viewers ?? []) viewer.send(text);
});

// A subscription that is asked for before the connection is ready may be lost.
redis.once("ready", () => {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096, perMessageDeflate: false });
  server.on("connection", (viewer, request) => {
    viewer.send('{"type":"connected"}');
    const name = request.url.split("/")[2];
    if (!name) return;
    join(name, viewer);
    viewer.on("close", () => leave(name, viewer));
  });
  server.on("listening", () => {
    console.error(JSON.stringify({ addr: `127.0.0.1:${server.address().port}` }));
  });
});
