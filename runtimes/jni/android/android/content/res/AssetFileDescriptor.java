package android.content.res;

import java.io.Closeable;
import java.io.FileDescriptor;
import java.io.IOException;

/** What a model's class calls of Android; for the compiler only, the phone has the real one. */
public class AssetFileDescriptor implements Closeable {
    public native FileDescriptor getFileDescriptor();

    public native long getStartOffset();

    public native long getLength();

    @Override
    public native void close() throws IOException;
}
