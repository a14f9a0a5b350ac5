// Socket.IO with its Redis adapter, as its documentation shows it; WebSockets only. Viewers join a room.
"use strict";
const { createServer } = require("node:http");
const { createAdapter } = require("@socket.io/redis-adapter");
const Redis = require("ioredis");
const { Server } = require("socket.io");

const redis = new Redis(process.argv[2]);
const follower = redis.duplicate();
const http = createServer();
const io = new Server(http, {
  adapter: createAdapter(redis, follower),
  perMessageDeflate: false,
  transports: ["websocket"],
});
io.on("connection", (socket) => {
  socket.on("join", (name) => {
    socket.join(name);
    socket.emit("caught_up");
  });
});
follower.once("ready", () => {
  http.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => {
    console.error(JSON.stringify({ addr: `127.0.0.1:${http.address().port}` }));
  });
});
