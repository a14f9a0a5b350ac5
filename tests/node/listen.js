// Connects to argv[2], sends the frames in argv[3] (a JSON array) once the relay has said `connected`,
// and prints each frame that arrives as one line, until it is killed.
import WebSocket from 'ws';

const [url, frames] = process.argv.slice(2);
const socket = new WebSocket(url);

socket.on('message', (data) => {
  const text = data.toString();
  console.log(text);
  if (JSON.parse(text).type === 'connected') {
    for (const frame of JSON.parse(frames)) socket.send(JSON.stringify(frame));
  }
});
socket.on('close', (code) => console.log(JSON.stringify({ type: 'closed', code })));
socket.on('error', (error) => console.error(error.message));
