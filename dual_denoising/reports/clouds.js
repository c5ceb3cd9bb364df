// Draws point clouds on canvases and turns them, together, with the mouse. A cloud is {points,
// colours}: 16-bit coordinates and, or null, 8-bit shades, both in base64.
function showClouds(canvases, cloudOf) {
  const turn = { yaw: -0.6, pitch: 0.35 };
  const decode = (text, type) =>
    new type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  function draw(canvas) {
    const cloud = cloudOf(canvas);
    const size = (canvas.width = canvas.height = canvas.clientWidth * devicePixelRatio);
    if (!cloud || !size) return;
    const points = decode(cloud.points, Int16Array);
    const shades = cloud.colours && decode(cloud.colours, Uint8Array);
    const [a, b, c, d] = [Math.cos(turn.yaw), Math.sin(turn.yaw), Math.cos(turn.pitch),
      Math.sin(turn.pitch)];
    const seen = [];
    for (let i = 0; i < points.length / 3; i++) {
      const [x, y, z] = points.subarray(3 * i, 3 * i + 3);
      const depth = a * z - b * x;
      const near = d * y + c * depth;
      seen.push([a * x + b * z, c * y - d * depth, near, shades && shades[i] / 255]);
    }
    seen.sort((p, q) => p[2] - q[2]);
    const far = seen[0][2], range = Math.max(1, seen[seen.length - 1][2] - far);
    const scale = (size / 2 / 32767) * 1.1, dot = Math.max(1.5, size / 110);
    const ink = canvas.getContext("2d");
    for (const [x, y, near, shade] of seen) {
      ink.fillStyle = `hsl(${250 - 200 * (shade ?? (near - far) / range)} 70% 50%)`;
      ink.fillRect(size / 2 + x * scale, size / 2 - y * scale, dot, dot);
    }
  }
  const redraw = () => canvases.forEach(draw);
  for (const canvas of canvases) {
    canvas.onpointerdown = (event) => canvas.setPointerCapture(event.pointerId);
    canvas.onpointermove = (event) => {
      if (!event.buttons) return;
      turn.yaw += event.movementX / 100;
      turn.pitch = Math.max(-1.5, Math.min(1.5, turn.pitch + event.movementY / 100));
      redraw();
    };
  }
  const watcher = new ResizeObserver(redraw); // calls at once, too
  canvases.forEach((canvas) => watcher.observe(canvas));
  return redraw;
}
