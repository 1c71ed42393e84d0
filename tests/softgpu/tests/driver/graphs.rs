//! Captured streams, their errors, and graphs made of them.

use cudarc::driver::{DriverError, sys};

use crate::{Device, add, isolated};

#[test]
fn graph_capture_replays() {
    isolated("graphs::graph_capture_replays", &[], || {
        let d = Device::new();
        // SAFETY: one stream; no events are needed to order its work.
        unsafe { d.ctx.disable_event_tracking() };
        let f = d.function("add");
        let mut x = d.stream.alloc_zeros::<f32>(100).expect("zeros");
        d.stream.synchronize().expect("synchronize");
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        d.stream.begin_capture(mode).expect("begin");
        add(&d.stream, &f, &mut x, 1.0).expect("launch");
        add(&d.stream, &f, &mut x, 2.0).expect("launch");
        let graph =
            d.stream.end_capture(sys::CUgraphInstantiate_flags(0)).expect("end").expect("graph");
        assert_eq!(d.stream.clone_dtoh(&x).expect("download"), vec![0.0; 100]);
        graph.upload().expect("upload");
        for _ in 0..5 {
            graph.launch().expect("launch");
        }
        assert_eq!(d.stream.clone_dtoh(&x).expect("download"), vec![15.0; 100]);
    });
}

#[test]
fn capture_errors_are_the_hardwares() {
    isolated("graphs::capture_errors_are_the_hardwares", &[], || {
        let d = Device::new();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let flags = sys::CUgraphInstantiate_flags(0);
        let code = |e: DriverError| e.0 as u32;
        // 900: waiting for a capturing stream; 901: the capture is spoilt by it.
        d.stream.begin_capture(mode).expect("begin");
        assert_eq!(d.stream.synchronize().map_err(code), Err(900));
        assert_eq!(d.stream.end_capture(flags).map(|_| ()).map_err(code), Err(901));
        // 905: waiting in a capture for work outside.
        let other = d.ctx.new_stream().expect("stream");
        let event = other.record_event(None).expect("event");
        d.stream.begin_capture(mode).expect("begin");
        assert_eq!(d.stream.wait(&event).map_err(code), Err(905));
        assert_eq!(d.stream.end_capture(flags).map(|_| ()).map_err(code), Err(901));
        // 907: the host waits for an event of a capture.
        d.stream.begin_capture(mode).expect("begin");
        let inside = d.stream.record_event(None).expect("event");
        assert_eq!(inside.synchronize().map_err(code), Err(907));
        assert_eq!(d.stream.end_capture(flags).map(|_| ()).map_err(code), Err(901));
        // 906: the legacy stream would depend on a capturing blocking stream.
        // SAFETY: raw calls with valid handles.
        unsafe {
            let mut blocking = std::ptr::null_mut();
            assert_eq!(sys::cuStreamCreate(&mut blocking, 0) as u32, 0);
            assert_eq!(
                sys::cuStreamBeginCapture_v2(
                    blocking,
                    sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED
                ) as u32,
                0
            );
            assert_eq!(sys::cuStreamSynchronize(std::ptr::null_mut()) as u32, 906);
            let mut graph = std::ptr::null_mut();
            assert_eq!(sys::cuStreamEndCapture(blocking, &mut graph) as u32, 901);
            assert_eq!(sys::cuStreamDestroy_v2(blocking) as u32, 0);
        }
    });
}

#[test]
fn an_instantiated_graph_takes_new_parameters() {
    isolated("graphs::an_instantiated_graph_takes_new_parameters", &[], || {
        let d = Device::new();
        // SAFETY: one stream; no events are needed to order its work.
        unsafe { d.ctx.disable_event_tracking() };
        let f = d.function("add");
        let mut x = d.stream.alloc_zeros::<f32>(100).expect("zeros");
        d.stream.synchronize().expect("synchronize");
        let mut capture = |values: &[f32]| {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            d.stream.begin_capture(mode).expect("begin");
            for &v in values {
                add(&d.stream, &f, &mut x, v).expect("launch");
            }
            let flags = sys::CUgraphInstantiate_flags(0);
            d.stream.end_capture(flags).expect("end").expect("graph")
        };
        let (first, second, longer) = (capture(&[1.0, 2.0]), capture(&[4.0, 8.0]), capture(&[1.0]));
        let update = |from: sys::CUgraph| {
            // SAFETY: both handles are alive; `info` is plain data, valid for writing.
            let (code, info) = unsafe {
                let mut info: sys::CUgraphExecUpdateResultInfo = std::mem::zeroed();
                (sys::cuGraphExecUpdate_v2(first.cu_graph_exec(), from, &mut info), info)
            };
            (code as u32, info.result as u32)
        };
        first.launch().expect("launch");
        assert_eq!(update(second.cu_graph()), (0, 0));
        first.launch().expect("launch");
        // Another shape is refused, with the reason, and changes nothing.
        assert_eq!(update(longer.cu_graph()), (910, 2));
        first.launch().expect("launch");
        assert_eq!(d.stream.clone_dtoh(&x).expect("download"), vec![27.0; 100]);
    });
}
