import effc.models.Digits;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicInteger;

/** Everything that an app does with the class of the digits example; argument: in.raw out.raw. */
public final class UseDigits {
    private static float[] wanted;

    public static void main(String[] arguments) throws Exception {
        float[] image = floats(Files.readAllBytes(Paths.get(arguments[0])));
        float[] scores = new float[10];
        describe();
        try (Digits model = new Digits()) {
            model.run(image, scores);
            wanted = scores.clone();
            write(Paths.get(arguments[1]), scores);
            direct(model, image);
            refusals(model, image);
            allocations(model, image);
            shared(model, image);
        }
        closed(image);
        Digits two = new Digits(2, 0);
        two.run(image, scores);
        expect(Arrays.equals(scores, wanted), "two threads give the same");
        two.close();
        two.close();
        System.out.println("all fine");
    }

    private static void describe() {
        Digits.TensorInfo input = Digits.inputs()[0];
        expect(input.name.equals("image") && input.dtype.equals("float32"), "name, type");
        expect(input.bytes == 256 && Arrays.equals(input.shape(), new int[] {1, 1, 8, 8}), "shape");
        expect(Digits.outputs().length == 1, "one output");
    }

    private static void direct(Digits model, float[] image) {
        ByteBuffer in = Digits.allocate(Digits.inputs()[0]);
        ByteBuffer out = Digits.allocate(Digits.outputs()[0]);
        in.asFloatBuffer().put(image);
        in.position(17);
        model.run(new ByteBuffer[] {in.asReadOnlyBuffer()}, new ByteBuffer[] {out});
        float[] scores = new float[10];
        out.asFloatBuffer().get(scores);
        expect(Arrays.equals(scores, wanted), "buffers give the same as arrays");
        in.position(0);
        expect(in.asFloatBuffer().equals(java.nio.FloatBuffer.wrap(image)), "input is left alone");
    }

    private static void refusals(Digits model, float[] image) {
        ByteBuffer in = ByteBuffer.allocateDirect(256);
        ByteBuffer out = ByteBuffer.allocateDirect(40);
        ByteBuffer[] ins = {in};
        ByteBuffer[] outs = {out};
        refused(() -> model.run(new float[3], new float[10]), "imageData: expected 64 elements");
        refused(() -> model.run(image, new float[11]), "expected 10 elements, got 11");
        refused(() -> model.run(new ByteBuffer[0], outs), "has 1 input(s), not 0");
        refused(() -> model.run(new ByteBuffer[] {out}, outs), "'image': expected a direct buffer");
        refused(() -> model.run(new ByteBuffer[] {ByteBuffer.allocate(256)}, outs), "a heap buffer");
        refused(
                () -> model.run(ins, new ByteBuffer[] {out.asReadOnlyBuffer()}),
                "output 0 is read-only");
        ByteBuffer odd = ByteBuffer.allocateDirect(257);
        odd.position(1);
        try {
            model.run(new ByteBuffer[] {odd.slice()}, outs);
            expect(false, "a misaligned buffer is refused");
        } catch (Digits.ModelException error) {
            expect(error.status == 3, "status of a misaligned buffer");
            expect(error.getMessage().equals("a tensor or the arena is not aligned"), "its text");
        }
        try {
            new Digits(65, 0).close();
            expect(false, "65 threads are refused");
        } catch (Digits.ModelException error) {
            expect(error.getMessage().equals("an argument is null or out of range"), "text");
        }
    }

    /** Neither form of run may allocate; the few bytes allowed are the measurement's own. */
    private static void allocations(Digits model, float[] image) {
        com.sun.management.ThreadMXBean counter =
                (com.sun.management.ThreadMXBean)
                        java.lang.management.ManagementFactory.getThreadMXBean();
        long thread = Thread.currentThread().getId();
        float[] scores = new float[10];
        ByteBuffer[] in = {Digits.allocate(Digits.inputs()[0])};
        ByteBuffer[] out = {Digits.allocate(Digits.outputs()[0])};
        for (int i = 0; i < 200; i++) {
            model.run(image, scores);
            model.run(in, out);
        }
        long before = counter.getThreadAllocatedBytes(thread);
        for (int i = 0; i < 1000; i++) {
            model.run(image, scores);
            model.run(in, out);
        }
        long bytes = counter.getThreadAllocatedBytes(thread) - before;
        expect(bytes < 2000, "2000 inferences allocated " + bytes + " bytes");
    }

    /** Many threads on one instance: no EFFC_BUSY, no torn results. */
    private static void shared(Digits model, float[] image) throws InterruptedException {
        AtomicInteger right = new AtomicInteger();
        Thread[] threads = new Thread[4];
        for (int t = 0; t < threads.length; t++) {
            threads[t] =
                    new Thread(
                            () -> {
                                float[] scores = new float[10];
                                for (int i = 0; i < 50; i++) {
                                    model.run(image, scores);
                                    right.addAndGet(Arrays.equals(scores, wanted) ? 1 : 0);
                                }
                            });
            threads[t].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        expect(right.get() == 200, "all of 200 results are right, not " + right.get());
    }

    private static void closed(float[] image) {
        Digits model = new Digits();
        model.close();
        try {
            model.run(image, new float[10]);
            expect(false, "a closed model does not run");
        } catch (IllegalStateException error) {
            expect(error.getMessage().contains("closed"), error.getMessage());
        }
    }

    private static void refused(Runnable call, String text) {
        try {
            call.run();
        } catch (IllegalArgumentException error) {
            expect(error.getMessage().contains(text), error.getMessage());
            return;
        }
        expect(false, "refused: " + text);
    }

    private static void expect(boolean fact, String what) {
        if (!fact) {
            throw new AssertionError(what);
        }
    }

    private static float[] floats(byte[] raw) {
        float[] values = new float[raw.length / 4];
        ByteBuffer.wrap(raw).order(ByteOrder.nativeOrder()).asFloatBuffer().get(values);
        return values;
    }

    private static void write(Path path, float[] values) throws java.io.IOException {
        ByteBuffer bytes = ByteBuffer.allocate(4 * values.length).order(ByteOrder.nativeOrder());
        bytes.asFloatBuffer().put(values);
        Files.write(path, bytes.array());
    }
}
