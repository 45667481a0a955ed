"""Sizes of browser windows, and a page that decodes a picture late, for tests of both pages."""

SIZES = {
  'desktop': {'viewport': {'width': 1280, 'height': 900}},
  'phone': {'viewport': {'width': 390, 'height': 844}, 'has_touch': True, 'is_mobile': True, 'device_scale_factor': 2},
}
HOLD = """() => {  // the next picture is decoded after release()
  const decode = createImageBitmap;
  window.createImageBitmap = async (file) => {
    window.createImageBitmap = decode;
    await new Promise((resolve) => (window.release = resolve));
    return decode(file);
  };
}"""
RELEASE = """async () => {
  release();
  await new Promise((resolve) => setTimeout(resolve, 300));
}"""
